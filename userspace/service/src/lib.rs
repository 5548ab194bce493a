//! What the two long-running programs, daemon and proxy, share: the listening socket, the log, memory, the service manager.
//!
//! Owns no policy of either. Never knows what is served.

mod authority;
mod connection;
pub mod log;
pub mod memory;
mod notify;
mod socket;

pub use connection::Connection;
pub use notify::notify_ready;
pub use socket::Socket;
