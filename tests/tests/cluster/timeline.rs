//! What happened while a resize was under way, by source and time, side by side.

use std::sync::{Arc, Mutex, PoisonError};

use kwitness_tests::agent::boottime;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Test,
    Api,
    Kernel,
    Verdict,
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// `CLOCK_BOOTTIME`, in nanoseconds.
    pub(crate) at: u64,
    pub(crate) source: Source,
    pub(crate) what: String,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Timeline(Arc<Mutex<Vec<Entry>>>);

impl Timeline {
    pub(crate) fn report(&self, source: Source, what: impl Into<String>) {
        self.report_at(boottime(), source, what);
    }

    pub(crate) fn report_at(&self, at: u64, source: Source, what: impl Into<String>) {
        let reported = Entry { at, source, what: what.into() };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(reported);
    }

    pub(crate) fn all(&self) -> Vec<Entry> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        all.sort_by_key(|reported| reported.at);
        all
    }

    pub(crate) fn first(&self, source: Source, accept: impl Fn(&str) -> bool) -> Option<u64> {
        self.all()
            .iter()
            .find(|reported| reported.source == source && accept(&reported.what))
            .map(|reported| reported.at)
    }

    pub(crate) fn print(&self, title: &str) {
        let all = self.all();
        let zero = all.first().map_or(0, |reported| reported.at);
        println!("{title}");
        println!("{:>8}  {:<42} {:<58} kwitness's verdict", "seconds", "the API", "the kernel");
        for reported in all {
            let seconds = (reported.at - zero) as f64 / 1e9;
            let (mut api, mut kernel, mut verdict) = ("", "", "");
            match reported.source {
                Source::Test | Source::Api => api = &reported.what,
                Source::Kernel => kernel = &reported.what,
                Source::Verdict => verdict = &reported.what,
            }
            println!("{}", format!("{seconds:>8.3}  {api:<42} {kernel:<58} {verdict}").trim_end());
        }
    }
}
