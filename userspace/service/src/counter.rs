//! Counters for the log and for tests; nothing is decided by them.

use std::sync::atomic::{AtomicU64, Ordering};

/// One counter. It only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn count(&self) {
        self.add(1);
    }

    /// Adds that many.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// The sum since the program started.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Declares a struct of [`Counter`]s that prints as `name=value` pairs.
#[macro_export]
macro_rules! counters {
    ($(#[$type_doc:meta])* $type:ident { $($(#[$doc:meta])* $name:ident),* $(,)? }) => {
        $(#[$type_doc])*
        #[derive(Debug, Default)]
        pub struct $type {
            $($(#[$doc])* pub $name: $crate::Counter,)*
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let all = [$((stringify!($name), self.$name.get())),*];
                for (at, (name, count)) in all.iter().enumerate() {
                    write!(f, "{}{name}={count}", if at == 0 { "" } else { " " })?;
                }
                Ok(())
            }
        }
    };
}
