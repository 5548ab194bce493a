//! The unit of a timeline's times.

use kwitness_api::{Timestamp, proto};

/// Microseconds since the Unix epoch: exact in JSON, whose readers often have 53 bits.
pub type Micros = i64;

/// A time, rounded down.
pub fn micros(time: Timestamp) -> Micros {
    time.to_unix_nanos().div_euclid(1000)
}

/// The kernel's time of an event, as wall-clock time.
pub fn event_micros(event: &proto::Event) -> Option<Micros> {
    event.time.map(micros)
}
