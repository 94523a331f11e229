// Golden cases of unrolled runs without Python: the engine's steps and the recursion around them, in float64, on any
// machine that a compiler reaches (an emulated one, too).
//
//   unroll CASES    CASES is what tests/native/cases.py writes
//
// Prints the relative L2 error of the loss and of the gradients in images, labels and learning rate, and ends with 1
// when one is above 1e-9.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "unroll/engine.h"

namespace {

using pad_fast::unroll::Engine;
using Row = std::vector<double>;

constexpr double kTolerance = 1e-9;

struct Case {
  std::string name;
  pad_fast::unroll::Network network;
  std::vector<std::vector<std::int64_t>> batches;
  double lr;
  Row start, target, kept, images, labels;            // kept: 1 for parameters that are matched, 0 for the others
  Row loss, images_gradient, labels_gradient, lr_gradient;  // what is expected
};

class Reader {
 public:
  explicit Reader(const char* path) : file_(std::fopen(path, "rb")) {
    if (!file_) std::perror(path), std::exit(2);
  }
  ~Reader() { std::fclose(file_); }
  std::int64_t integer() {
    std::int64_t value;
    read(&value, sizeof value);
    return value;
  }
  template <class T> std::vector<T> row() {
    std::vector<T> values(static_cast<std::size_t>(integer()));
    read(values.data(), values.size() * sizeof(T));
    return values;
  }

 private:
  void read(void* to, std::size_t bytes) {
    if (std::fread(to, 1, bytes, file_) != bytes)
      std::fprintf(stderr, "the file of cases is too short\n"), std::exit(2);
  }
  std::FILE* file_;
};

Case read_case(Reader& from) {
  Case c;
  const std::vector<char> name = from.row<char>();
  c.name.assign(name.begin(), name.end());
  const std::vector<std::int64_t> sizes = from.row<std::int64_t>();  // channels, side, padding, depth, width, classes
  c.network = {sizes[0], sizes[1], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5]};
  for (std::int64_t left = from.integer(); left > 0; --left) c.batches.push_back(from.row<std::int64_t>());
  c.lr = from.row<double>()[0];
  for (Row* row : {&c.start, &c.target, &c.kept, &c.images, &c.labels, &c.loss, &c.images_gradient, &c.labels_gradient,
                   &c.lr_gradient})
    *row = from.row<double>();
  return c;
}

double relative(const Row& got, const Row& expected) {
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    difference += (got[i] - expected[i]) * (got[i] - expected[i]);
    size += expected[i] * expected[i];
  }
  return got.size() == expected.size() && size > 0 ? std::sqrt(difference / size) : NAN;
}

// Rows of `from` that a batch takes, and their sum back.
Row taken(const Row& from, const std::vector<std::int64_t>& batch, std::size_t row) {
  Row rows;
  for (const std::int64_t i : batch) rows.insert(rows.end(), from.begin() + i * row, from.begin() + (i + 1) * row);
  return rows;
}
void put_back(const Row& rows, const std::vector<std::int64_t>& batch, std::size_t row, double scale, Row& to) {
  for (std::size_t i = 0; i < batch.size(); ++i)
    for (std::size_t j = 0; j < row; ++j) to[batch[i] * row + j] += scale * rows[i * row + j];
}

bool right(const Case& c, int threads) {
  pad_fast::unroll::Options options;
  options.threads = threads;
  const std::unique_ptr<Engine> engine(pad_fast::unroll::make_engine_baseline(c.network, options, true));
  const std::size_t parameters = c.start.size(), classes = c.network.classes;
  const std::size_t pixels = c.network.channels * c.network.height * c.network.width;
  if (engine->parameter_count() != std::ptrdiff_t(parameters)) return std::printf("other parameters\n"), false;
  std::vector<Row> thetas{c.start};
  Row gradient(parameters);
  for (const auto& batch : c.batches) {
    const Row x = taken(c.images, batch, pixels), y = taken(c.labels, batch, classes);
    engine->loss_and_grad(thetas.back().data(), x.data(), batch.size(), y.data(), pad_fast::unroll::kLogits,
                          gradient.data(), nullptr, nullptr);
    Row next = thetas.back();
    for (std::size_t i = 0; i < parameters; ++i) next[i] -= c.lr * gradient[i];
    thetas.push_back(next);
  }
  double reached = 0, required = 0;
  Row v(parameters);
  for (std::size_t i = 0; i < parameters; ++i) {
    const double error = c.kept[i] * (thetas.back()[i] - c.target[i]);
    reached += error * error, required += c.kept[i] * (c.start[i] - c.target[i]) * (c.start[i] - c.target[i]);
    v[i] = 2 * error;
  }
  for (double& value : v) value /= required;
  Row images_gradient(c.images.size()), labels_gradient(c.labels.size()), lr_gradient(1), pulled(parameters);
  for (std::size_t t = c.batches.size(); t-- > 0;) {
    const auto& batch = c.batches[t];
    const Row x = taken(c.images, batch, pixels), y = taken(c.labels, batch, classes);
    Row dx(x.size()), dy(y.size());
    lr_gradient[0] -= engine->adjoint(thetas[t].data(), v.data(), x.data(), batch.size(), y.data(),
                                      pad_fast::unroll::kLogits, pulled.data(), dx.data(), dy.data(), nullptr, nullptr);
    put_back(dx, batch, pixels, -c.lr, images_gradient);
    put_back(dy, batch, classes, -c.lr, labels_gradient);
    for (std::size_t i = 0; i < parameters; ++i) v[i] -= c.lr * pulled[i];
  }
  const double errors[] = {relative({reached / required}, c.loss), relative(images_gradient, c.images_gradient),
                           relative(labels_gradient, c.labels_gradient), relative(lr_gradient, c.lr_gradient)};
  std::printf("%-16s %d threads  loss %.1e  images %.1e  labels %.1e  lr %.1e\n", c.name.c_str(), threads, errors[0],
              errors[1], errors[2], errors[3]);
  return std::all_of(std::begin(errors), std::end(errors), [](double error) { return error <= kTolerance; });
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) return std::fprintf(stderr, "usage: unroll CASES\n"), 2;
  Reader reader(arguments[1]);
  bool all = true;
  for (std::int64_t left = reader.integer(); left > 0; --left) {
    const Case c = read_case(reader);
    for (const int threads : {1, 3}) all = right(c, threads) && all;
  }
  return all ? 0 : 1;
}
