#include "block.h"

#include <bit>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "sanitizers.h"

namespace cudasim {

dim3 grid_size, block_size;
char error[1024];

namespace {

#ifdef CUDASIM_TSAN
// Blocks take turns with twice the fibres, so that TSan sees threads of two neighbouring blocks, or
// of many small ones, as different threads.
constexpr unsigned pool_size = 2 * max_threads;
#else
constexpr unsigned pool_size = max_threads;
#endif

struct ReadyQueue {
  Fibre* waiting[max_threads];
  unsigned first = 0, count = 0;

  void push(Fibre* fibre) {
    fibre->state = State::ready;
    waiting[(first + count++) % max_threads] = fibre;
  }
  Fibre* pop() {
    Fibre* fibre = waiting[first];
    first = (first + 1) % max_threads;
    --count;
    return fibre;
  }
  void bring_forward(unsigned position) { std::swap(waiting[first], waiting[(first + position) % max_threads]); }
};

Fibre pool[pool_size];
unsigned pool_position = 0;

Job* job;
Fibre* threads;  // of this block
Warp warps[max_threads / warp_size];
ReadyQueue ready;
int thread_count, running, at_barrier;

char fence_token, start_token, end_token;

// ---- whose turn it is ----

Fibre& next_fibre() {
  if (!ready.count) return host;
  if (job->shuffled) ready.bring_forward(static_cast<unsigned>(job->random.below(ready.count)));
  return *ready.pop();
}

// Returns when it is the current thread's turn again.
void give_turn() {
  Fibre& next = next_fibre();
  if (&next != current) switch_to(next);
}

// ---- barrier ----

// Leaving the kernel early is legal since sm_70 for threads that meet no further barrier.  It is an
// error here: no kernel of this project needs it, and it hides barriers that not all threads reach.
void release_barrier(const Place& place) {
  if (at_barrier != thread_count) {
    fail(place, "__syncthreads: %d of %d threads have left the kernel", thread_count - at_barrier, thread_count);
  }
  for (int i = 0; i < thread_count; ++i) {
    if (threads[i].place.line() == place.line()) continue;
    fail(place, "__syncthreads: thread %d waits at line %u, another at line %u", i, threads[i].place.line(),
         place.line());
  }
  at_barrier = 0;
  for (int i = 0; i < thread_count; ++i) ready.push(&threads[i]);
}

// ---- warp collectives ----

const char* name_of(Collective kind) {
  switch (kind) {
    case Collective::shuffle:
      return "__shfl_sync";
    case Collective::shuffle_up:
      return "__shfl_up_sync";
    case Collective::shuffle_down:
      return "__shfl_down_sync";
    case Collective::shuffle_xor:
      return "__shfl_xor_sync";
    case Collective::ballot:
      return "__ballot_sync";  // __any_sync and __all_sync are ballots too
    case Collective::match_any:
      return "__match_any_sync";
    case Collective::syncwarp:
      return "__syncwarp";
  }
  return "";
}

bool is_shuffle(Collective kind) {
  return kind <= Collective::shuffle_xor;
}

bool contains(unsigned mask, int lane) {
  return mask >> lane & 1;
}

template <class Visit>
void for_each_lane(unsigned mask, Visit visit) {
  for (; mask; mask &= mask - 1) visit(std::countr_zero(mask));
}

int source_lane(const Fibre& fibre) {
  const int lane = fibre.lane, first = lane & ~(fibre.width - 1), end = first + fibre.width;
  switch (fibre.collective) {
    case Collective::shuffle:
      return first | (fibre.argument & (fibre.width - 1));
    case Collective::shuffle_up:
      return lane - fibre.argument < first ? lane : lane - fibre.argument;
    case Collective::shuffle_down:
      return lane + fibre.argument >= end ? lane : lane + fibre.argument;
    default:
      return (lane ^ fibre.argument) >= end ? lane : lane ^ fibre.argument;
  }
}

uint64_t shuffled_value(const Fibre* lanes, unsigned present, const Fibre& fibre) {
  const int source = source_lane(fibre);
  if (source < 0 || source >= warp_size || !contains(present, source)) {
    fail(fibre.place, "%s: lane %d reads lane %d, which takes no part (mask %08x)", name_of(fibre.collective),
         fibre.lane, source, fibre.mask);
  }
  return lanes[source].value;
}

unsigned lanes_where(const Fibre* lanes, unsigned present, auto condition) {
  unsigned result = 0;
  for_each_lane(present, [&](int lane) { result |= static_cast<unsigned>(condition(lanes[lane])) << lane; });
  return result;
}

uint64_t result_for(const Fibre* lanes, unsigned present, const Fibre& fibre) {
  if (is_shuffle(fibre.collective)) return shuffled_value(lanes, present, fibre);
  if (fibre.collective == Collective::ballot) {
    return lanes_where(lanes, present, [](const Fibre& other) { return other.value != 0; });
  }
  return lanes_where(lanes, present, [&](const Fibre& other) { return other.value == fibre.value; });
}

void check_agreement(const Fibre* lanes, unsigned present, const Fibre& fibre) {
  for_each_lane(present, [&](int lane) {
    const Fibre& other = lanes[lane];
    if (other.mask != fibre.mask) {
      fail(fibre.place, "%s: lane %d has mask %08x, lane %d has %08x", name_of(fibre.collective), fibre.lane,
           fibre.mask, other.lane, other.mask);
    }
    if (other.collective != fibre.collective) {
      fail(fibre.place, "lane %d executes %s where lane %d executes %s (line %u), under one mask %08x", fibre.lane,
           name_of(fibre.collective), other.lane, name_of(other.collective), other.place.line(), fibre.mask);
    }
  });
}

// If every live lane of the fibre's mask has come, computes all results and lets the others go on.
bool complete_collective(Fibre& fibre) {
  Warp& warp = *fibre.warp;
  const unsigned present = fibre.mask & warp.live;
  if ((warp.waiting & present) != present) return false;
  Fibre* const lanes = &fibre - fibre.lane;
  check_agreement(lanes, present, fibre);
  for_each_lane(present, [&](int lane) { lanes[lane].result = result_for(lanes, present, lanes[lane]); });
  warp.waiting &= ~present;
  for_each_lane(present, [&](int lane) {
    if (lanes[lane].state == State::in_collective) ready.push(&lanes[lane]);
  });
  return true;
}

// ---- a thread's life ----

// Others may have waited for nothing but this thread.
void retire(Fibre& self) {
  self.state = State::done;
  self.warp->live &= ~(1u << self.lane);
  --running;
  if (running && at_barrier == running) {
    for (int i = 0; i < thread_count; ++i) {
      if (threads[i].state == State::at_barrier) release_barrier(threads[i].place);
    }
  }
  Fibre* const lanes = &self - self.lane;
  for_each_lane(self.warp->waiting, [&](int lane) {
    if (contains(self.warp->waiting, lane)) complete_collective(lanes[lane]);
  });
}

void thread_main() {
  arrived();
  sanitizer::acquire(&start_token);
  job->call(job->arguments);
  sanitizer::release(&end_token);
  retire(*current_fibre());
  leave_for(next_fibre());
}

void start_thread(int number, uint3 block) {
  Fibre& fibre = threads[number];
  const unsigned i = static_cast<unsigned>(number), row = i / block_size.x;
  fibre.index = {i % block_size.x, row % block_size.y, row / block_size.y};
  fibre.block = block;
  fibre.number = number;
  fibre.lane = number % warp_size;
  fibre.warp = &warps[number / warp_size];
  if (fibre.lane == 0) *fibre.warp = {0, 0};
  fibre.warp->live |= 1u << fibre.lane;
  prepare(fibre, thread_main);
  ready.push(&fibre);
}

void start_block(uint3 block) {
  thread_count = running = static_cast<int>(block_size.x * block_size.y * block_size.z);
  at_barrier = 0;
  ready.first = ready.count = 0;
  const unsigned lanes = (static_cast<unsigned>(thread_count) + warp_size - 1) / warp_size * warp_size;
  if (pool_position + lanes > pool_size) pool_position = 0;
  threads = pool + pool_position;
  pool_position += lanes;
  for (int i = 0; i < thread_count; ++i) start_thread(i, block);
}

void report_deadlock() {
  const Fibre* stuck = nullptr;  // rather in a collective: the barrier may just wait for those
  for (int i = 0; i < thread_count; ++i) {
    const Fibre& fibre = threads[i];
    if (fibre.state == State::in_collective || (fibre.state == State::at_barrier && !stuck)) stuck = &fibre;
  }
  const bool collective = stuck->state == State::in_collective;
  report("%s:%u: deadlock: thread %d waits for ever in %s (of %d threads %d are at __syncthreads, %d have left)",
         stuck->place.file_name(), stuck->place.line(), stuck->number,
         collective ? name_of(stuck->collective) : "__syncthreads", thread_count, at_barrier, thread_count - running);
}

}  // namespace

uint64_t Random::below(uint64_t limit) {  // xorshift64
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state % limit;
}

bool run_block(Job& its_job, uint3 block) {
  job = &its_job;
  start_block(block);
  sanitizer::release(&start_token);
  switch_to(next_fibre());
  if (!*error && running) report_deadlock();
  for (int i = 0; i < thread_count; ++i) {
    if (threads[i].state != State::done) sanitizer::join(threads[i]);
  }
  return !*error;
}

void begin_launch() {
  sanitizer::start();
  current = &host;
  pool_position = 0;
}

void end_launch() {
  sanitizer::acquire(&end_token);
}

void syncthreads(const Place& place) {
  Fibre& self = *current_fibre();
  self.place = place;
  self.state = State::at_barrier;
  sanitizer::release(&threads->block_token);
  if (++at_barrier == running) release_barrier(place);
  give_turn();
  sanitizer::acquire(&threads->block_token);
}

uint64_t collective(Collective kind, unsigned mask, uint64_t value, int argument, int width, const Place& place) {
  Fibre& self = *current_fibre();
  if (!contains(mask, self.lane)) {
    fail(place, "%s: lane %d calls it and is not in its own mask %08x", name_of(kind), self.lane, mask);
  }
  if (width < 1 || width > warp_size || !std::has_single_bit(static_cast<unsigned>(width))) {
    fail(place, "%s: width %d is no power of two up to %d", name_of(kind), width, warp_size);
  }
  self.place = place;
  self.collective = kind;
  self.mask = mask;
  self.value = value;
  self.argument = argument;
  self.width = width;
  self.warp->waiting |= 1u << self.lane;
  Fibre& first_lane = *(&self - self.lane);
  // Of all collectives only __syncwarp orders memory; shuffles and votes do not.
  if (kind == Collective::syncwarp) sanitizer::release(&first_lane.warp_token);
  if (!complete_collective(self)) {
    self.state = State::in_collective;
    give_turn();
  }
  if (kind == Collective::syncwarp) sanitizer::acquire(&first_lane.warp_token);
  return self.result;
}

void threadfence() {
  sanitizer::release(&fence_token);
  sanitizer::acquire(&fence_token);
  maybe_yield();
}

void maybe_yield() {
  if (!job->shuffled || !ready.count || job->random.below(2)) return;
  ready.push(current_fibre());
  give_turn();
}

void clear_error() {
  *error = 0;
}

void report(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(error, sizeof error, format, arguments);
  va_end(arguments);
}

void abandon_block() {
  sanitizer::release(&end_token);
  leave_for(host);
}

void fail(const Place& place, const char* format, ...) {
  char what[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(what, sizeof what, format, arguments);
  va_end(arguments);
  const Thread& at = *current;
  report("%s:%u: %s [block (%u, %u, %u), thread (%u, %u, %u)]", place.file_name(), place.line(), what, at.block.x,
         at.block.y, at.block.z, at.index.x, at.index.y, at.index.z);
  abandon_block();
}

}  // namespace cudasim
