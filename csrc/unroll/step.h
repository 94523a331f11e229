// Whole steps: evaluation, the plain step (loss and gradient) and its adjoint (docs section 2), over groups of images
// and a fixed split of the batch over threads, so that a thread count gives one result.
#pragma once
#include "engine.h"
#include "layout.h"
#include "unroll/blocks/head.h"

namespace pad_fast {
namespace unroll {
namespace PAD_ISA {

template <class T> class CacheOf final : public Cache {
 public:
  explicit CacheOf(const Layout<T>& layout) : layout_(layout) {}
  std::ptrdiff_t bytes() const override { return std::ptrdiff_t(memory_.size()); }
  static index_t bytes_for(const Layout<T>& layout, index_t images) { return bytes_of<Saved<T>>(layout, images); }
  void resize(index_t images) {
    if (images > capacity_) {
      memory_.resize(std::size_t(bytes_for(layout_, images)));
      capacity_ = images;
      saved = carved<Saved<T>>(memory_.data(), layout_, images);
    }
    batch = images;
  }
  Saved<T> saved;
  index_t batch = 0;

 private:
  const Layout<T>& layout_;
  Buffer memory_;
  index_t capacity_ = 0;
};

template <class T> class EngineOf final : public Engine {
 public:
  EngineOf(const Network& network, const Options& options) : options_(options), pool_(options.threads) {
    y_.set_up(network, options);
  }

  std::ptrdiff_t parameter_count() const override { return y_.parameters; }
  std::ptrdiff_t workspace_bytes() const override { return std::ptrdiff_t(shared_.size() + private_.size()); }
  std::ptrdiff_t cache_bytes(std::ptrdiff_t batch) const override { return CacheOf<T>::bytes_for(y_, batch); }
  Cache* make_cache() const override { return new CacheOf<T>(y_); }

  void forward(const void* theta, const void* x, std::ptrdiff_t batch, void* logits, void* features) override {
    Call call;
    call.kind_of_call = kForward;
    call.theta = static_cast<const T*>(theta), call.x = static_cast<const T*>(x), call.batch = batch;
    call.logits = static_cast<T*>(logits), call.features = static_cast<T*>(features);
    run(call);
  }

  double loss_and_grad(const void* theta, const void* x, std::ptrdiff_t batch, const void* labels, LabelKind kind,
                       void* grad, void* logits, Cache* cache) override {
    Call call;
    call.kind_of_call = kPlain;
    call.theta = static_cast<const T*>(theta), call.x = static_cast<const T*>(x), call.batch = batch;
    call.labels = labels, call.kind = kind, call.grad = static_cast<T*>(grad), call.logits = static_cast<T*>(logits);
    call.cache = static_cast<CacheOf<T>*>(cache);
    if (call.cache) call.cache->resize(batch);
    return run(call) / double(batch);
  }

  double adjoint(const void* theta, const void* v, const void* x, std::ptrdiff_t batch, const void* labels,
                 LabelKind kind, void* dtheta, void* dx, void* dy, void* grad, Cache* cache) override {
    Call call;
    call.kind_of_call = kAdjoint;
    call.theta = static_cast<const T*>(theta), call.v = static_cast<const T*>(v), call.x = static_cast<const T*>(x);
    call.batch = batch, call.labels = labels, call.kind = kind;
    call.dtheta = static_cast<T*>(dtheta), call.dx = static_cast<T*>(dx), call.dy = static_cast<T*>(dy);
    call.grad = static_cast<T*>(grad), call.cache = static_cast<CacheOf<T>*>(cache);
    return run(call);
  }

 private:
  enum Kind { kForward, kPlain, kAdjoint };
  struct Call {
    Kind kind_of_call;
    const T *theta = nullptr, *v = nullptr, *x = nullptr;
    index_t batch = 0;
    const void* labels = nullptr;
    LabelKind kind = kHard;
    T *grad = nullptr, *dtheta = nullptr, *logits = nullptr, *features = nullptr, *dx = nullptr, *dy = nullptr;
    CacheOf<T>* cache = nullptr;
    EngineOf* engine = nullptr;
    int threads = 1;
  };

  // --- one call: prepare the parameters, run the groups, add up the threads' sums -----------------------------------
  double run(Call& call) {
    const index_t work = call.batch * work_per_image_();
    call.threads = int(min_of<index_t>(options_.threads, min_of<index_t>(call.batch, 1 + work / 1000000)));
    call.engine = this;
    reserve(call.batch);
    pool_.run(
        call.threads, [](void* c, int i) { static_cast<Call*>(c)->engine->prepare(*static_cast<Call*>(c), i); }, &call);
    pool_.run(
        call.threads, [](void* c, int i) { static_cast<Call*>(c)->engine->groups(*static_cast<Call*>(c), i); }, &call);
    if (call.kind_of_call != kForward)
      pool_.run(
          call.threads, [](void* c, int i) { static_cast<Call*>(c)->engine->finish(*static_cast<Call*>(c), i); },
          &call);
    double result = 0;
    for (int i = 0; i < call.threads; ++i) result += work_[i].result;
    return result;
  }

  index_t work_per_image_() const {  // products of one forward pass
    index_t sum = 0;
    for (index_t l = 0; l < y_.depth; ++l) {
      const Conv<T>& c = y_.layer[l].conv;
      sum += c.ops.points * c.tiles_y * c.tiles_x * c.inputs * c.outputs;
    }
    return sum;
  }

  void reserve(index_t batch) {
    const index_t share = ceil_div(batch, max_of(1, options_.threads));
    if (share <= group_ && shared_.size() > 0) return;
    const index_t image = bytes_of<Work<T>>(y_, index_t(2)) - bytes_of<Work<T>>(y_, index_t(1));
    const index_t fits = max_of<index_t>(1, options_.group_bytes / image);
    const index_t wanted = min_of(share, min_of(fits, y_.images_for_chunks()));
    if (wanted == group_ && shared_.size() > 0) return;
    group_ = wanted;
    lay_out(shared_, [this](Carver& memory) { weights_.carve(memory, y_), direction_.carve(memory, y_); });
    if (!work_) work_ = static_cast<Work<T>*>(work_memory_(sizeof(Work<T>) * std::size_t(options_.threads)));
    lay_out(private_, [this](Carver& memory) {
      for (int i = 0; i < options_.threads; ++i) work_[i].carve(memory, y_, group_);
    });
  }
  // Makes room for what `carve` takes, and lays it out there.
  template <class Carve> static void lay_out(Buffer& buffer, Carve carve) {
    Carver count{nullptr};
    carve(count);
    buffer.resize(std::size_t(count.used));
    Carver memory{buffer.data()};
    carve(memory);
  }
  void* work_memory_(std::size_t bytes) {
    work_buffer_.resize(bytes);
    return work_buffer_.data();
  }

  static index_t part(index_t total, index_t i, index_t n) { return total * i / n; }

  void prepare(const Call& call, int thread) {
    const bool backward = call.kind_of_call != kForward;
    prepare_one(call.theta, weights_, backward, call.dx != nullptr, thread, call.threads);
    if (call.v) prepare_one(call.v, direction_, backward, call.dx != nullptr, thread, call.threads);
  }
  void prepare_one(const T* theta, Prepared<T>& to, bool backward, bool images, int thread, int threads) const {
    for (index_t l = 0; l < y_.depth; ++l) {
      const Layer<T>& y = y_.layer[l];
      if (l == 0 && y_.fused_first) continue;
      y.conv.transform_forward(theta + y.w, to.filters[l].forward, part(y.conv.input_blocks(), thread, threads),
                               part(y.conv.input_blocks(), thread + 1, threads));
      if (backward && (l > 0 || images))
        y.conv.transform_backward(theta + y.w, to.filters[l].backward, part(y.conv.output_groups(), thread, threads),
                                  part(y.conv.output_groups(), thread + 1, threads));
    }
    const index_t classes = y_.classes, width = y_.net.net_width;
    const index_t pixels = y_.features / y_.width_stride;
    for (index_t k = part(classes, thread, threads); k < part(classes, thread + 1, threads); ++k)
      for (index_t c = 0; c < width; ++c)
        for (index_t p = 0; p < pixels; ++p) {
          const T value = theta[y_.classifier + (k * width + c) * pixels + p];
          to.head_w[k * y_.features + p * y_.width_stride + c] = value;
          to.head_wt[(p * y_.width_stride + c) * y_.padded_classes + k] = value;
        }
    if (thread > 0) return;
    for (index_t l = 0; l < y_.depth; ++l) {
      std::memcpy(to.norm[l], theta + y_.layer[l].g, width * sizeof(T));
      std::memcpy(to.norm[l] + y_.width_stride, theta + y_.layer[l].b, width * sizeof(T));
    }
    std::memcpy(to.head_b, theta + y_.classifier_bias, classes * sizeof(T));
    if (y_.fused_first) y_.first.prepare(theta + y_.layer[0].w, to.first);
  }

  void groups(const Call& call, int thread) {
    [[maybe_unused]] const typename ProductsOf<T>::type::ThreadState state{};
    Work<T>& w = work_[thread];
    w.result = 0;
    if (call.kind_of_call == kAdjoint) w.sums[0].clear(y_.depth);
    if (call.grad) w.sums[1].clear(y_.depth);
    const index_t begin = part(call.batch, thread, call.threads), end = part(call.batch, thread + 1, call.threads);
    const index_t count = ceil_div(end - begin, group_);
    for (index_t g = 0; g < count; ++g) {
      const index_t first = begin + part(end - begin, g, count), last = begin + part(end - begin, g + 1, count);
      const Group group{first, last - first, call.cache ? call.cache->saved.from(y_, first) : w.saved};
      forward_group(call, w, group);
      if (call.kind_of_call != kForward) backward_group(call, w, group);
    }
  }

  struct Group {
    index_t first, images;
    Saved<T> saved;
  };

  NormParameters<T> norm(index_t l) const {
    return {weights_.norm[l], weights_.norm[l] + y_.width_stride, direction_.norm[l],
            direction_.norm[l] + y_.width_stride};
  }
  NormGradients<T> norm_sums(Sums<T>& sums, index_t l) const { return {sums.norm[l], sums.norm[l] + y_.width_stride}; }
  static NormGradients<T> nothing() { return {nullptr, nullptr}; }

  Head<T> head() const {
    return {y_.classes,      y_.features,       y_.padded_classes,  weights_.head_w,  weights_.head_wt,
            weights_.head_b, direction_.head_w, direction_.head_wt, direction_.head_b};
  }

  // --- forward ------------------------------------------------------------------------------------------------------
  void load_images(const Call& call, Work<T>& w, const Group& group) const {
    const Network& n = y_.net;
    const Conv<T>& conv = y_.layer[0].conv;
    for (index_t i = 0; i < group.images; ++i) {
      const T* x = call.x + (group.first + i) * n.channels * n.height * n.width;
      T* to = w.input + i * conv.in_image + n.pad_first * (conv.in_row + conv.in_stride);
      for (index_t c = 0; c < n.channels; ++c)
        for (index_t r = 0; r < n.height; ++r)
          for (index_t s = 0; s < n.width; ++s)
            to[r * conv.in_row + s * conv.in_stride + c] = x[(c * n.height + r) * n.width + s];
    }
  }
  void store_images(const Call& call, Work<T>& w, const Group& group) const {
    const Network& n = y_.net;
    const Conv<T>& conv = y_.layer[0].conv;
    for (index_t i = 0; i < group.images; ++i) {
      T* x = call.dx + (group.first + i) * n.channels * n.height * n.width;
      const T* from = w.input_pull + i * conv.in_image + n.pad_first * (conv.in_row + conv.in_stride);
      for (index_t c = 0; c < n.channels; ++c)
        for (index_t r = 0; r < n.height; ++r)
          for (index_t s = 0; s < n.width; ++s)
            x[(c * n.height + r) * n.width + s] = from[r * conv.in_row + s * conv.in_stride + c];
    }
  }

  void store_features(const Call& call, const T* maps, const Group& group) const {
    const Layer<T>& y = y_.layer[y_.depth - 1];
    const index_t channels = y_.net.net_width, pixels = y.pooled_h * y.pooled_w;
    for (index_t i = 0; i < group.images; ++i) {
      T* out = call.features + (group.first + i) * channels * pixels;
      const View<const T> map = y_.output(y_.depth - 1, maps, i);
      for (index_t r = 0; r < y.pooled_h; ++r)
        for (index_t s = 0; s < y.pooled_w; ++s)
          for (index_t c = 0; c < channels; ++c) out[c * pixels + r * y.pooled_w + s] = map.at(r, s)[c];
    }
  }

  void forward_first(const Call& call, Work<T>& w, const Group& group) const {
    using First = FirstBlock<T>;
    const First& f = y_.first;
    const bool tangent = call.kind_of_call == kAdjoint, cached = tangent && call.cache;
    const typename First::Weights weights = weights_.first, direction = direction_.first;
    const index_t pixels = y_.net.channels * y_.net.height * y_.net.width;
    for (index_t i = 0; i < group.images; ++i) {
      const typename First::Saved saved =
          carved<typename First::Saved>(group.saved.first + i * y_.first_saved_bytes(), f);
      const typename First::Image image = carved<typename First::Image>(w.first_images + i * y_.first_image_bytes(), f);
      f.load_image(call.x + (group.first + i) * pixels, image.x);
      if (!cached) f.moments(image.x, saved);
      f.derive(saved, weights, tangent ? &direction : nullptr, norm(0), image);
      const View<T> o = y_.output(0, group.saved.maps[1], i), od = y_.output(0, w.tangents[1], i);
      if (cached)
        f.template forward<First::kTangentOnly>(image, saved.signs, o, od, w.first_scratch);
      else if (tangent)
        f.template forward<First::kBoth>(image, saved.signs, o, od, w.first_scratch);
      else
        f.template forward<First::kValues>(image, saved.signs, o, od, w.first_scratch);
    }
  }
  void backward_first(const Call& call, Work<T>& w, const Group& group) const {
    using First = FirstBlock<T>;
    const First& f = y_.first;
    const typename First::Weights weights = weights_.first, direction = direction_.first;
    const typename First::Scratch scratch = w.first_scratch;
    const index_t pixels = y_.net.channels * y_.net.height * y_.net.width;
    const NormGradients<T> plain = call.grad ? norm_sums(w.sums[1], 0) : nothing();
    T* plain_w = call.grad ? w.sums[1].first_w : nullptr;
    for (index_t i = 0; i < group.images; ++i) {
      const typename First::Saved saved =
          carved<typename First::Saved>(group.saved.first + i * y_.first_saved_bytes(), f);
      const typename First::Image image = carved<typename First::Image>(w.first_images + i * y_.first_image_bytes(), f);
      const View<const T> god = y_.output(0, static_cast<const T*>(group.saved.pull[1]), i);
      if (call.kind_of_call == kAdjoint)
        f.backward_adjoint(image, saved, weights, direction, norm(0),
                           y_.output(0, static_cast<const T*>(w.pull_a[1]), i), god, scratch, w.sums[0].first_w,
                           norm_sums(w.sums[0], 0), plain_w, plain,
                           call.dx ? call.dx + (group.first + i) * pixels : nullptr);
      else
        f.backward_plain(image, saved, weights, norm(0), god, scratch, plain_w, plain);
    }
  }

  void forward_group(const Call& call, Work<T>& w, const Group& group) {
    const bool tangent = call.kind_of_call == kAdjoint, cached = tangent && call.cache;
    const Saved<T>& s = group.saved;
    if (y_.fused_first)
      forward_first(call, w, group);
    else
      load_images(call, w, group);
    for (index_t l = y_.fused_first ? 1 : 0; l < y_.depth; ++l) {
      const Layer<T>& y = y_.layer[l];
      const T *h = l > 0 ? s.maps[l] : w.input, *hd = l > 0 ? w.tangents[l] : nullptr;
      const auto pool = [&](index_t i) {
        const T *z = s.z[l] + i * y.conv.out_image, *zd = w.zd[l] + i * y.conv.out_image;
        const Stats<T> st = Stats<T>::at(s.stats[l] + i * y_.stats_elements(), y_.width_stride);
        const View<T> o = y_.output(l, s.maps[l + 1], i);
        if (tangent)
          y_.plane(l).template forward<true>(z, zd, st, norm(l), o, y_.output(l, w.tangents[l + 1], i));
        else
          y_.plane(l).template forward<false>(z, nullptr, st, norm(l), o, o);
      };
      y.conv.forward(h, hd, weights_.filters[l], direction_.filters[l], cached ? nullptr : s.z[l],
                     tangent ? w.zd[l] : nullptr, group.images, w.chunk, pool);
    }
    const Head<T> top = head();
    const T* features = s.maps[y_.depth];
    if (call.features) store_features(call, features, group);
    if (call.kind_of_call == kForward && !call.logits) return;
    top.logits(features, group.images, w.u);
    if (tangent) top.tangent(features, w.tangents[y_.depth], group.images, w.ud);
    if (call.logits)
      for (index_t i = 0; i < group.images; ++i)
        std::memcpy(call.logits + (group.first + i) * y_.classes, w.u + i * y_.padded_classes, y_.classes * sizeof(T));
  }

  // --- backward -----------------------------------------------------------------------------------------------------
  void backward_group(const Call& call, Work<T>& w, const Group& group) {
    const bool adjoint = call.kind_of_call == kAdjoint, cached = adjoint && call.cache;
    const Saved<T>& s = group.saved;
    const Head<T> top = head();
    const T* features = s.maps[y_.depth];
    const typename Head<T>::Rows rows{w.u, w.ud, w.gu, w.gud};
    double* scratch = w.rows;
    const index_t d = y_.depth;
    if (adjoint) {
      w.result += top.adjoint(rows, group.first, group.images, call.batch, call.labels, call.kind, call.dy, scratch);
      top.pull(w.gu, top.w, group.images, w.pull_a[d], false);
      top.pull(w.gud, top.v, group.images, w.pull_a[d], true);
      top.accumulate(w.gu, features, group.images, w.sums[0].head_w, w.sums[0].head_b);
      top.accumulate(w.gud, w.tangents[d], group.images, w.sums[0].head_w, nullptr);
    } else {
      w.result += top.loss(rows, group.first, group.images, call.batch, call.labels, call.kind, scratch);
    }
    if (!cached) top.pull(w.gud, top.w, group.images, s.pull[d], false);
    if (call.grad) top.accumulate(w.gud, features, group.images, w.sums[1].head_w, w.sums[1].head_b);

    for (index_t l = d - 1; l >= (y_.fused_first ? 1 : 0); --l) {
      const Layer<T>& y = y_.layer[l];
      const index_t image = y.conv.out_image;
      const auto pull = [&](index_t i, index_t slot) {
        const Stats<T> st = Stats<T>::at(s.stats[l] + i * y_.stats_elements(), y_.width_stride);
        const View<const T> god = y_.output(l, static_cast<const T*>(s.pull[l + 1]), i);
        const NormGradients<T> plain = call.grad ? norm_sums(w.sums[1], l) : nothing();
        if (adjoint)
          y_.plane(l).backward_adjoint(s.z[l] + i * image, w.zd[l] + i * image, st, norm(l),
                                       y_.output(l, static_cast<const T*>(w.pull_a[l + 1]), i), god,
                                       w.gz + slot * image, w.gzd + slot * image, norm_sums(w.sums[0], l), plain);
        else
          y_.plane(l).backward_plain(s.z[l] + i * image, st, norm(l), god, w.gzd + slot * image, plain);
      };
      typename Conv<T>::Backward b{};
      b.h = l > 0 ? s.maps[l] : w.input, b.hd = l > 0 && adjoint ? w.tangents[l] : nullptr;
      b.gz = adjoint ? w.gz : nullptr, b.gzd = w.gzd;
      b.gh = !adjoint ? nullptr : l > 0 ? w.pull_a[l] : call.dx ? w.input_pull : nullptr;
      b.ghd = l > 0 && !cached ? s.pull[l] : nullptr;
      if (adjoint) b.du = w.sums[0].du[l], b.keep = w.sums[0].used[l], w.sums[0].used[l] = true;
      if (call.grad) b.du_plain = w.sums[1].du[l], b.keep_plain = w.sums[1].used[l], w.sums[1].used[l] = true;
      y.conv.backward(b, weights_.filters[l], direction_.filters[l], group.images, w.chunk, pull);
    }
    if (y_.fused_first)
      backward_first(call, w, group);
    else if (call.dx)
      store_images(call, w, group);
  }

  // --- add up the threads --------------------------------------------------------------------------------------------
  void finish(const Call& call, int thread) {
    if (call.dtheta) finish_one(call, 0, call.dtheta, thread);
    if (call.grad) finish_one(call, 1, call.grad, thread);
  }
  void finish_one(const Call& call, int which, T* out, int thread) {
    T* parts[kMaxThreads];
    const int n = call.threads;
    for (index_t l = 0; l < y_.depth; ++l) {
      const Layer<T>& y = y_.layer[l];
      if (l == 0 && y_.fused_first) continue;
      for (int i = 0; i < n; ++i) parts[i] = work_[i].sums[which].du[l];
      y.conv.weight_gradient(parts, n, out + y.w, part(y.conv.output_vectors(), thread, n),
                             part(y.conv.output_vectors(), thread + 1, n));
    }
    // The rest is small: the first thread's sums collect the others'.
    const index_t width = y_.net.net_width, classes = y_.classes, pixels = y_.features / y_.width_stride;
    for (index_t k = part(classes, thread, n); k < part(classes, thread + 1, n); ++k)
      for (index_t p = 0; p < pixels; ++p)
        for (index_t c = 0; c < width; ++c) {
          T sum = 0;
          for (int i = 0; i < n; ++i) sum += work_[i].sums[which].head_w[k * y_.features + p * y_.width_stride + c];
          out[y_.classifier + (k * width + c) * pixels + p] = sum;
        }
    if (thread > 0) return;
    for (index_t k = 0; k < classes; ++k) {
      T sum = 0;
      for (int i = 0; i < n; ++i) sum += work_[i].sums[which].head_b[k];
      out[y_.classifier_bias + k] = sum;
    }
    for (index_t l = 0; l < y_.depth; ++l) {
      std::memset(out + y_.layer[l].bias, 0, width * sizeof(T));  // the bias cancels under instance norm (eq. 4)
      for (index_t c = 0; c < width; ++c) {
        T g = 0, b = 0;
        for (int i = 0; i < n; ++i) {
          g += work_[i].sums[which].norm[l][c];
          b += work_[i].sums[which].norm[l][y_.width_stride + c];
        }
        out[y_.layer[l].g + c] = g, out[y_.layer[l].b + c] = b;
      }
    }
    if (y_.fused_first) {
      for (int i = 0; i < n; ++i) parts[i] = work_[i].sums[which].first_w;
      y_.first.weight_gradient(parts, n, out + y_.layer[0].w);
    }
  }

  Options options_;
  Layout<T> y_;
  Pool pool_;
  Buffer shared_, private_, work_buffer_;
  Prepared<T> weights_, direction_;
  Work<T>* work_ = nullptr;
  index_t group_ = 0;
};

}  // namespace PAD_ISA
}  // namespace unroll
}  // namespace pad_fast
