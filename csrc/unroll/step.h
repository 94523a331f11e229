// Whole steps: evaluation, the plain step (loss and gradient) and its adjoint (docs section 2). A batch is cut into
// lists of images, each with sums of its own, and a list into groups that fit the cache. Threads take a list when they
// are free; the lists and the order in which they are added up depend on the thread count alone, and so does the
// result.
#pragma once
#include <vector>

#include "engine.h"
#include "layout.h"
#include "parallel.h"
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
  EngineOf(const Network& network, const Options& options) : options_(options) { y_.set_up(network, options); }

  std::ptrdiff_t parameter_count() const override { return y_.parameters; }
  std::ptrdiff_t products() const override {
    index_t sum = 0;
    for (index_t l = y_.fused_first ? 1 : 0; l < y_.depth; ++l) sum += products_of(y_.layer[l].conv);
    return sum;
  }
  std::ptrdiff_t workspace_bytes() const override {
    return std::ptrdiff_t(shared_.size() + private_.size() + sums_memory_.size());
  }
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
    int threads = 1, lists = 1;
    bool two_sums() const { return kind_of_call == kAdjoint && grad; }  // the plain gradient is a by-product
  };
  // One thread's share of a list of this many images is worth a second list: whoever is held up does fewer of them.
  static constexpr index_t kWorthHalving = 16;
  // Pieces of one layer's filters or sums that are handed out at a time: a few tens of microseconds each.
  static constexpr index_t kPieces = 8;

  // --- one call: prepare the parameters, run the lists, add up their sums -------------------------------------------
  double run(Call& call) {
    index_t work = 0;
    for (index_t l = 0; l < y_.depth; ++l) work += call.batch * products_of(y_.layer[l].conv);
    call.threads = int(min_of<index_t>(options_.threads, min_of<index_t>(call.batch, 1 + work / 1000000)));
    call.lists = call.threads > 1 && call.batch >= kWorthHalving * call.threads ? 2 * call.threads : call.threads;
    reserve(call);
    const index_t halves = call.v ? 2 : 1;
    hand_out(call, halves * (y_.depth * 2 * kPieces + 1), [this, &call](int, index_t i) { prepare(call, i); });
    hand_out(call, call.lists, [this, &call](int worker, index_t i) { run_list(call, work_[worker], i); });
    if (call.kind_of_call != kForward)
      hand_out(call, (call.two_sums() ? 2 : 1) * (y_.depth * kPieces + 1),
               [this, &call](int, index_t i) { finish(call, i); });
    double result = 0;
    for (int i = 0; i < call.lists; ++i) result += sums_[i].result;
    return result;
  }
  // Not parallel_for: nothing that is compiled here for one instruction set may be shared with other sources.
  template <class Body> static void hand_out(const Call& call, index_t pieces, const Body& body) {
    const auto task = [](void* context, int worker, std::int64_t piece) {
      (*static_cast<const Body*>(context))(worker, index_t(piece));
    };
    run_pieces(pieces, call.threads, task, const_cast<Body*>(&body));
  }

  static index_t products_of(const Conv<T>& c) { return c.ops.points * c.tiles_y * c.tiles_x * c.inputs * c.outputs; }

  void reserve(const Call& call) {
    const index_t share = ceil_div(call.batch, max_of(1, options_.threads));
    if (share > group_ || shared_.size() == 0) {
      const index_t image = bytes_of<Work<T>>(y_, index_t(2)) - bytes_of<Work<T>>(y_, index_t(1));
      const index_t fits = max_of<index_t>(1, options_.group_bytes / image);
      const index_t wanted = min_of(share, min_of(fits, y_.images_for_chunks()));
      if (wanted != group_ || shared_.size() == 0) {
        group_ = wanted;
        lay_out(shared_, [this](Carver& memory) { weights_.carve(memory, y_), direction_.carve(memory, y_); });
        work_.resize(std::size_t(options_.threads));
        lay_out(private_, [this](Carver& memory) {
          for (Work<T>& w : work_) w.carve(memory, y_, group_);
        });
      }
    }
    const bool both = both_sums_ || call.two_sums();
    if (std::size_t(call.lists) <= sums_.size() && both == both_sums_) return;
    sums_.resize(max_of(sums_.size(), std::size_t(call.lists))), both_sums_ = both;
    lay_out(sums_memory_, [this](Carver& memory) {
      for (ListSums& list : sums_) {
        list.of[0].carve(memory, y_);
        if (both_sums_) list.of[1].carve(memory, y_);
      }
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
  static index_t part(index_t total, index_t i, index_t n) { return total * i / n; }

  // Piece i: of theta, then of v, the layers' filters in both orientations, then everything small.
  void prepare(const Call& call, index_t i) {
    const index_t pieces = y_.depth * 2 * kPieces + 1;
    const T* theta = i < pieces ? call.theta : call.v;
    Prepared<T>& to = i < pieces ? weights_ : direction_;
    i %= pieces;
    if (i == pieces - 1) return prepare_small(theta, to);
    const index_t l = i / (2 * kPieces), piece = i % kPieces;
    const Layer<T>& y = y_.layer[l];
    const bool backward = i / kPieces % 2 == 1;
    if (l == 0 && y_.fused_first) return;
    if (!backward)
      y.conv.transform_forward(theta + y.w, to.filters[l].forward, part(y.conv.input_blocks(), piece, kPieces),
                               part(y.conv.input_blocks(), piece + 1, kPieces));
    else if (call.kind_of_call != kForward && (l > 0 || call.dx))
      y.conv.transform_backward(theta + y.w, to.filters[l].backward, part(y.conv.output_groups(), piece, kPieces),
                                part(y.conv.output_groups(), piece + 1, kPieces));
  }
  void prepare_small(const T* theta, Prepared<T>& to) const {
    const index_t classes = y_.classes, width = y_.net.net_width;
    const index_t pixels = y_.features / y_.width_stride;
    for (index_t k = 0; k < classes; ++k)
      for (index_t c = 0; c < width; ++c)
        for (index_t p = 0; p < pixels; ++p) {
          const T value = theta[y_.classifier + (k * width + c) * pixels + p];
          to.head_w[k * y_.features + p * y_.width_stride + c] = value;
          to.head_wt[(p * y_.width_stride + c) * y_.padded_classes + k] = value;
        }
    for (index_t l = 0; l < y_.depth; ++l) {
      std::memcpy(to.norm[l], theta + y_.layer[l].g, width * sizeof(T));
      std::memcpy(to.norm[l] + y_.width_stride, theta + y_.layer[l].b, width * sizeof(T));
    }
    std::memcpy(to.head_b, theta + y_.classifier_bias, classes * sizeof(T));
    if (y_.fused_first) y_.first.prepare(theta + y_.layer[0].w, to.first);
  }

  void run_list(const Call& call, Work<T>& w, index_t list) {
    [[maybe_unused]] const typename ProductsOf<T>::type::ThreadState state{};
    ListSums& sums = sums_[std::size_t(list)];
    sums.result = 0;
    if (call.kind_of_call != kForward) sums.of[0].clear(y_.depth);
    if (call.two_sums()) sums.of[1].clear(y_.depth);
    const index_t begin = part(call.batch, list, call.lists), end = part(call.batch, list + 1, call.lists);
    const index_t count = ceil_div(end - begin, group_);
    for (index_t g = 0; g < count; ++g) {
      const index_t first = begin + part(end - begin, g, count), last = begin + part(end - begin, g + 1, count);
      const Group group{first, last - first, call.cache ? call.cache->saved.from(y_, first) : w.saved};
      forward_group(call, w, group);
      if (call.kind_of_call != kForward) backward_group(call, w, sums, group);
    }
  }

  // What a list of images adds up: d phi/d theta or the plain gradient first, the plain gradient beside an adjoint
  // second.
  struct ListSums {
    Sums<T> of[2];
    double result;
    Sums<T>& plain(const Call& call) { return of[call.two_sums() ? 1 : 0]; }
  };
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
  void backward_first(const Call& call, Work<T>& w, ListSums& sums, const Group& group) const {
    using First = FirstBlock<T>;
    const First& f = y_.first;
    const typename First::Weights weights = weights_.first, direction = direction_.first;
    const typename First::Scratch scratch = w.first_scratch;
    const index_t pixels = y_.net.channels * y_.net.height * y_.net.width;
    const NormGradients<T> plain = call.grad ? norm_sums(sums.plain(call), 0) : nothing();
    T* plain_w = call.grad ? sums.plain(call).first_w : nullptr;
    for (index_t i = 0; i < group.images; ++i) {
      const typename First::Saved saved =
          carved<typename First::Saved>(group.saved.first + i * y_.first_saved_bytes(), f);
      const typename First::Image image = carved<typename First::Image>(w.first_images + i * y_.first_image_bytes(), f);
      const View<const T> god = y_.output(0, static_cast<const T*>(group.saved.pull[1]), i);
      if (call.kind_of_call == kAdjoint)
        f.backward_adjoint(image, saved, weights, direction, norm(0),
                           y_.output(0, static_cast<const T*>(w.pull_a[1]), i), god, scratch, sums.of[0].first_w,
                           norm_sums(sums.of[0], 0), plain_w, plain,
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
  void backward_group(const Call& call, Work<T>& w, ListSums& sums, const Group& group) {
    const bool adjoint = call.kind_of_call == kAdjoint, cached = adjoint && call.cache;
    const Saved<T>& s = group.saved;
    const Head<T> top = head();
    const T* features = s.maps[y_.depth];
    const typename Head<T>::Rows rows{w.u, w.ud, w.gu, w.gud};
    double* scratch = w.rows;
    const index_t d = y_.depth;
    if (adjoint) {
      sums.result += top.adjoint(rows, group.first, group.images, call.batch, call.labels, call.kind, call.dy, scratch);
      top.pull(w.gu, top.w, group.images, w.pull_a[d], false);
      top.pull(w.gud, top.v, group.images, w.pull_a[d], true);
      top.accumulate(w.gu, features, group.images, sums.of[0].head_w, sums.of[0].head_b);
      top.accumulate(w.gud, w.tangents[d], group.images, sums.of[0].head_w, nullptr);
    } else {
      sums.result += top.loss(rows, group.first, group.images, call.batch, call.labels, call.kind, scratch);
    }
    if (!cached) top.pull(w.gud, top.w, group.images, s.pull[d], false);
    if (call.grad) top.accumulate(w.gud, features, group.images, sums.plain(call).head_w, sums.plain(call).head_b);

    for (index_t l = d - 1; l >= (y_.fused_first ? 1 : 0); --l) {
      const Layer<T>& y = y_.layer[l];
      const index_t image = y.conv.out_image;
      const auto pull = [&](index_t i, index_t slot) {
        const Stats<T> st = Stats<T>::at(s.stats[l] + i * y_.stats_elements(), y_.width_stride);
        const View<const T> god = y_.output(l, static_cast<const T*>(s.pull[l + 1]), i);
        const NormGradients<T> plain = call.grad ? norm_sums(sums.plain(call), l) : nothing();
        if (adjoint)
          y_.plane(l).backward_adjoint(s.z[l] + i * image, w.zd[l] + i * image, st, norm(l),
                                       y_.output(l, static_cast<const T*>(w.pull_a[l + 1]), i), god,
                                       w.gz + slot * image, w.gzd + slot * image, norm_sums(sums.of[0], l), plain);
        else
          y_.plane(l).backward_plain(s.z[l] + i * image, st, norm(l), god, w.gzd + slot * image, plain);
      };
      typename Conv<T>::Backward b{};
      b.h = l > 0 ? s.maps[l] : w.input, b.hd = l > 0 && adjoint ? w.tangents[l] : nullptr;
      b.gz = adjoint ? w.gz : nullptr, b.gzd = w.gzd;
      b.gh = !adjoint ? nullptr : l > 0 ? w.pull_a[l] : call.dx ? w.input_pull : nullptr;
      b.ghd = l > 0 && !cached ? s.pull[l] : nullptr;
      if (adjoint) b.du = sums.of[0].du[l], b.keep = sums.of[0].used[l], sums.of[0].used[l] = true;
      if (call.grad) {
        Sums<T>& plain = sums.plain(call);
        b.du_plain = plain.du[l], b.keep_plain = plain.used[l], plain.used[l] = true;
      }
      y.conv.backward(b, weights_.filters[l], direction_.filters[l], group.images, w.chunk, pull);
    }
    if (y_.fused_first)
      backward_first(call, w, sums, group);
    else if (call.dx)
      store_images(call, w, group);
  }

  // --- add up the lists ---------------------------------------------------------------------------------------------
  // Piece i: of what is wanted first, the layers' gradients, then everything small; then of the plain gradient.
  void finish(const Call& call, index_t i) {
    const index_t pieces = y_.depth * kPieces + 1, which = i / pieces;
    T* out = call.kind_of_call == kAdjoint && which == 0 ? call.dtheta : call.grad;
    i %= pieces;
    if (i == pieces - 1) return finish_small(call, which, out);
    const index_t l = i / kPieces, piece = i % kPieces;
    if (l == 0 && y_.fused_first) return;
    const Layer<T>& y = y_.layer[l];
    T* parts[kMaxLists];
    for (int j = 0; j < call.lists; ++j) parts[j] = sums_[j].of[which].du[l];
    y.conv.weight_gradient(parts, call.lists, out + y.w, part(y.conv.output_vectors(), piece, kPieces),
                           part(y.conv.output_vectors(), piece + 1, kPieces));
  }
  void finish_small(const Call& call, index_t which, T* out) {
    const int n = call.lists;
    const index_t width = y_.net.net_width, classes = y_.classes, pixels = y_.features / y_.width_stride;
    for (index_t k = 0; k < classes; ++k)
      for (index_t p = 0; p < pixels; ++p)
        for (index_t c = 0; c < width; ++c) {
          T sum = 0;
          for (int i = 0; i < n; ++i) sum += sums_[i].of[which].head_w[k * y_.features + p * y_.width_stride + c];
          out[y_.classifier + (k * width + c) * pixels + p] = sum;
        }
    for (index_t k = 0; k < classes; ++k) {
      T sum = 0;
      for (int i = 0; i < n; ++i) sum += sums_[i].of[which].head_b[k];
      out[y_.classifier_bias + k] = sum;
    }
    for (index_t l = 0; l < y_.depth; ++l) {
      std::memset(out + y_.layer[l].bias, 0, width * sizeof(T));  // the bias cancels under instance norm (eq. 4)
      for (index_t c = 0; c < width; ++c) {
        T g = 0, b = 0;
        for (int i = 0; i < n; ++i) {
          g += sums_[i].of[which].norm[l][c];
          b += sums_[i].of[which].norm[l][y_.width_stride + c];
        }
        out[y_.layer[l].g + c] = g, out[y_.layer[l].b + c] = b;
      }
    }
    if (y_.fused_first) {
      T* parts[kMaxLists];
      for (int i = 0; i < n; ++i) parts[i] = sums_[i].of[which].first_w;
      y_.first.weight_gradient(parts, n, out + y_.layer[0].w);
    }
  }

  Options options_;
  Layout<T> y_;
  Buffer shared_, private_, sums_memory_;
  Prepared<T> weights_, direction_;
  std::vector<Work<T>> work_;   // of each thread
  std::vector<ListSums> sums_;  // of each list
  bool both_sums_ = false;      // sums_[.].of[1] have memory
  index_t group_ = 0;
};

}  // namespace PAD_ISA
}  // namespace unroll
}  // namespace pad_fast
