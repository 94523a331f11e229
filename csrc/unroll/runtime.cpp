// Memory and permissions: everything of the engine that is compiled once, without ISA-specific flags.
#include <sys/mman.h>
#include <unistd.h>
#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#endif

#include <new>

#include "engine.h"

namespace pad_fast {
namespace unroll {

Cache::~Cache() = default;
Engine::~Engine() = default;

bool amx_allowed() {
#if defined(__x86_64__) && defined(__linux__)
  unsigned a, b, c, d;
  constexpr unsigned bf16 = 1u << 22, tile = 1u << 24;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (bf16 | tile)) != (bf16 | tile)) return false;
  // Linux saves tile registers only for processes that have asked (ARCH_REQ_XCOMP_PERM), and may refuse, for example
  // where a signal stack is too small for them. Granted once, it holds for all threads and children.
  constexpr long request = 0x1023, tile_data = 18;
  static const bool granted = syscall(SYS_arch_prctl, request, tile_data) == 0;
  return granted;
#else
  return false;
#endif
}

void* allocate(std::size_t bytes) {
  if (bytes == 0) return nullptr;
  // Anonymous mappings come zeroed and are given back whole; the allocator's own large blocks would be unmapped and
  // faulted in again at every resize just the same.
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  if (bytes >= (std::size_t(4) << 20)) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  return memory;
}

void release(void* memory, std::size_t bytes) {
  if (memory) munmap(memory, bytes);
}

Buffer::~Buffer() { release(data_, size_); }

void Buffer::resize(std::size_t bytes) {
  if (bytes == size_) return;
  release(data_, size_);
  data_ = nullptr, size_ = 0;
  data_ = static_cast<char*>(allocate(bytes));
  size_ = bytes;
}

}  // namespace unroll
}  // namespace pad_fast
