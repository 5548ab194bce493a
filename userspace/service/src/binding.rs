//! An address that is served beside what a program is for: metrics, probes, a forwarded port, a status. While it is taken, the program
//! does what it is for, says so, and tries again.
//!
//! ```text
//!  attempt ── error ──▶ logged once, a problem ──▶ again after 0.5 s, 1 s … 30 s ──▶ bound: logged, no problem any more
//!     └── bound
//! ```
//!
//! Owns when it is tried and what is said of it. Never gives up. The socket that a program is for is none of these: without it the
//! program ends, and names the process that has it ([`Socket`](crate::Socket)).

use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// The wait after a failure, doubled each time.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// An address that is to be listened on.
#[derive(Debug)]
pub struct Binding {
    state: BindingState,
    /// When it is tried again, and how long after that.
    next: Option<(Instant, Duration)>,
    /// Whether what was logged last is that another process has it, as was expected then.
    was_expected: bool,
}

/// Whether an address is listened on. Clones share it.
#[derive(Clone, Debug)]
pub struct BindingState {
    setting: &'static str,
    error: Arc<Mutex<Option<String>>>,
    /// Whether another process is expected to have the address for now.
    is_inherited: Arc<AtomicBool>,
}

impl BindingState {
    /// The setting that names the address, and why it cannot be listened on at present; none: it is, or has not been tried.
    pub fn problem(&self) -> Option<(&'static str, String)> {
        Some((self.setting, self.error.lock().unwrap_or_else(PoisonError::into_inner).clone()?))
    }

    /// No other process is expected to have the address any more.
    pub fn take_over(&self) {
        self.is_inherited.store(false, Relaxed);
    }

    fn set(&self, error: Option<String>) -> Option<String> {
        std::mem::replace(&mut *self.error.lock().unwrap_or_else(PoisonError::into_inner), error)
    }
}

impl Binding {
    /// Of the address that this setting or flag names. Nothing is tried yet.
    pub fn new(setting: &'static str) -> Self {
        let state = BindingState { setting, error: Arc::default(), is_inherited: Arc::default() };
        Self { state, next: None, was_expected: false }
    }

    /// Likewise, of one that a process has whose end this one waits for: that it is taken is no error until
    /// [`BindingState::take_over`].
    pub fn inherited(setting: &'static str) -> Self {
        let binding = Self::new(setting);
        binding.state.is_inherited.store(true, Relaxed);
        binding
    }

    /// Whether it is listened on, for whoever reports problems.
    pub fn state(&self) -> BindingState {
        self.state.clone()
    }

    /// Tries once. Within a tokio runtime with time.
    pub fn attempt<T>(&mut self, bind: impl FnOnce() -> anyhow::Result<T>) -> Option<T> {
        let setting = self.state.setting;
        match bind() {
            Ok(listener) => {
                if self.state.set(None).is_some() {
                    tracing::info!(setting, "recovered: listening");
                }
                self.next = None;
                Some(listener)
            }
            Err(error) => {
                let is_expected = self.state.is_inherited.load(Relaxed) && is_taken(&error);
                let error = format!("{error:#}");
                let before = self.state.set(Some(error.clone()));
                let was_expected = std::mem::replace(&mut self.was_expected, is_expected);
                if before.as_ref() != Some(&error) || was_expected && !is_expected {
                    if is_expected {
                        tracing::info!(setting, error, "not served while another process has the address");
                    } else {
                        tracing::error!(setting, error, "not served: trying again");
                    }
                }
                let pause = self.next.map_or(PAUSE.0, |(_, pause)| (pause * 2).min(PAUSE.1));
                self.next = Some((Instant::now() + pause, pause));
                None
            }
        }
    }

    /// Tries until it works. May be dropped and called again.
    pub async fn listen<T>(&mut self, mut bind: impl FnMut() -> anyhow::Result<T>) -> T {
        loop {
            if let Some((at, _)) = self.next {
                sleep_until(at).await;
            }
            if let Some(listener) = self.attempt(&mut bind) {
                return listener;
            }
        }
    }
}

impl From<&'static str> for Binding {
    fn from(setting: &'static str) -> Self {
        Self::new(setting)
    }
}

fn is_taken(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    causes.any(|cause| cause.kind() == io::ErrorKind::AddrInUse)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_taken_is_a_problem_until_it_can_be_had() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let mut binding = Binding::new("api.listen");
        let state = binding.state();
        assert_eq!(state.problem(), None);
        assert!(binding.attempt(|| Ok(TcpListener::bind(address)?)).is_none());
        let (setting, error) = state.problem().unwrap();
        assert!(setting == "api.listen" && error.contains("in use"), "{setting}: {error}");
        let (began, mut held, mut attempts) = (Instant::now(), Some(taken), 0);
        binding
            .listen(|| {
                attempts += 1;
                if attempts == 9 {
                    held = None;
                }
                Ok(TcpListener::bind(address)?)
            })
            .await;
        assert_eq!(state.problem(), None);
        assert_eq!(attempts, 9);
        // 0.5, 1, 2, 4, 8, 16 and then 30 s each.
        assert_eq!(began.elapsed().as_secs(), 31 + 3 * 30);
    }

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn only_a_taken_address_is_expected_of_an_inherited_one() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let logged = |binding: &mut Binding, bind: &dyn Fn() -> anyhow::Result<TcpListener>| {
            let log = Log::default();
            let writer = log.clone();
            let lines =
                tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).finish();
            tracing::subscriber::with_default(lines, || assert!(binding.attempt(bind).is_none()));
            assert!(binding.state().problem().is_some());
            let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
            (text.contains(" INFO "), text.contains("ERROR "))
        };
        let bind = || {
            TcpListener::bind(address).map_err(|error| anyhow::Error::from(error).context("cannot listen"))
        };
        let mut inherited = Binding::inherited("http.listen");
        assert_eq!(logged(&mut inherited, &bind), (true, false));
        assert_eq!(logged(&mut inherited, &bind), (false, false), "once");
        inherited.state().take_over();
        assert_eq!(logged(&mut inherited, &bind), (false, true), "it is an error now");
        assert_eq!(logged(&mut Binding::new("http.listen"), &bind), (false, true));
        let refuse = || Err(anyhow::anyhow!("no such address"));
        assert_eq!(logged(&mut Binding::inherited("http.listen"), &refuse), (false, true));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_is_dropped_goes_on() {
        let mut binding = Binding::new("http.listen");
        let refuse = || Err::<(), _>(anyhow::anyhow!("taken"));
        assert!(binding.attempt(refuse).is_none());
        let mut attempts = 0;
        for _ in 0..8 {
            let listening = binding.listen(|| {
                attempts += 1;
                refuse()
            });
            assert!(tokio::time::timeout(Duration::from_millis(100), listening).await.is_err());
        }
        assert_eq!(attempts, 1);
    }
}
