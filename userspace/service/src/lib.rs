//! What the long-running programs (daemon, proxy, exporter, guard) share: the listening socket and its connections, HTTP and
//! metrics, the lock that keeps a second instance out, capabilities, files of configuration, state and text, the log, signals, memory, the
//! service manager.
//!
//! Owns no policy of any of them. Never knows what is served.

mod authority;
mod beginning;
mod binding;
mod bounded;
pub mod charge_calls;
pub mod configuration;
mod connection;
mod counter;
pub mod descriptors;
pub mod heartbeat;
pub mod http;
mod listener;
mod lock;
pub mod log;
#[expect(unsafe_code, reason = "an allocator is unsafe to implement, and to ask how much it has")]
pub mod memory;
pub mod metrics;
mod notify;
mod pid_namespace;
pub mod private;
pub mod privileges;
pub mod program;
mod signals;
mod slots;
mod socket;
pub mod state_file;
pub mod text_file;
mod time_namespace;

pub use beginning::{Beginning, ConnectionCounters};
pub use binding::{Binding, BindingState};
pub use bounded::{Answers, BoundedCodec, BoundedDecoder, Received, Requests, undecodable_answer};
pub use configuration::ConfigurationError;
pub use connection::Connection;
pub use counter::Counter;
pub use listener::{Limits, Listener};
pub use lock::{InstanceLock, LockError, Role, Standby};
pub use notify::notify_ready;
pub use pid_namespace::{in_initial_pid_namespace, pid_namespace};
pub use signals::{Signal, Signals};
pub use slots::{Client, ConnectionId, Held, Origin, Peer, Sharer, Shares, gives_way};
pub use socket::Socket;
pub use time_namespace::boot_time_offset;
