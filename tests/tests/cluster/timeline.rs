//! What was told while a resize was under way, by whom and when, side by side.

use std::sync::{Arc, Mutex, PoisonError};

use kwitness_tests::agent::boottime;

/// Who told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Teller {
    Test,
    Api,
    Kernel,
    Verdict,
}

/// One thing that was told.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    /// `CLOCK_BOOTTIME`, in nanoseconds.
    pub(crate) at: u64,
    pub(crate) teller: Teller,
    pub(crate) what: String,
}

/// All that was told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Timeline(Arc<Mutex<Vec<Told>>>);

impl Timeline {
    /// It is told now.
    pub(crate) fn tell(&self, teller: Teller, what: impl Into<String>) {
        self.tell_at(boottime(), teller, what);
    }

    /// It was told then.
    pub(crate) fn tell_at(&self, at: u64, teller: Teller, what: impl Into<String>) {
        let told = Told { at, teller, what: what.into() };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(told);
    }

    /// In the order of time.
    pub(crate) fn all(&self) -> Vec<Told> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        all.sort_by_key(|told| told.at);
        all
    }

    /// The first that passes.
    pub(crate) fn first(&self, teller: Teller, accept: impl Fn(&str) -> bool) -> Option<u64> {
        self.all().iter().find(|told| told.teller == teller && accept(&told.what)).map(|told| told.at)
    }

    /// Prints it as a table, in seconds since its first line.
    pub(crate) fn print(&self, title: &str) {
        let all = self.all();
        let zero = all.first().map_or(0, |told| told.at);
        println!("{title}");
        println!("{:>8}  {:<42} {:<58} kwitness's verdict", "seconds", "the API", "the kernel");
        for told in all {
            let seconds = (told.at - zero) as f64 / 1e9;
            let (mut api, mut kernel, mut verdict) = ("", "", "");
            match told.teller {
                Teller::Test | Teller::Api => api = &told.what,
                Teller::Kernel => kernel = &told.what,
                Teller::Verdict => verdict = &told.what,
            }
            println!("{}", format!("{seconds:>8.3}  {api:<42} {kernel:<58} {verdict}").trim_end());
        }
    }
}
