//! The plugin `kubectl kwitness`; everything it does is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    kwitness::kubectl()
}
