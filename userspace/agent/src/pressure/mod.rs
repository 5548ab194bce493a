//! Memory pressure without a program in the kernel: usage of the levels that have a limit, sampled.
//!
//! ```text
//!  engine ── levels, once a second ──▶ sampler ── Observation::MemorySampled ──▶ engine
//!                                        │ read: usage, limit
//!                                   MemoryFiles: memory.current, memory.max, or their names in cgroup v1
//! ```
//!
//! How often each level is sampled follows from how full it is and how fast it fills
//! ([`kwitness_core::pressure::sampling`]); which samples make an event is decided by the core. What happens between two samples
//! is not seen. Never waits for anything in the engine's task, and never reads more files than `sampler` allows itself.

mod files;
mod sampler;

pub use files::{FindError, MemoryFiles};
pub(crate) use sampler::{Sampling, start};
