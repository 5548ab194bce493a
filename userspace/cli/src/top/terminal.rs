//! The terminal: taken over for as long as the screen is shown, and given back however that ends: a key, a signal, an error, a panic.
//!
//! Owns the loop of samples, keys and signals. What a key does is the model's.

use std::io;
use std::time::Duration;

use anstream::{AutoStream, ColorChoice};
use anyhow::Context as _;
use chrono::Utc;
use kwitness_api::client::{UsageItem, UsageWatch};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::widgets::ListState;
use tokio::sync::mpsc;

use super::model::Model;
use super::screen::Screen;
use crate::exit::Code;
use crate::time::{TimeFormat, Times};

/// Keys that wait to be looked at.
const KEYS: usize = 64;
/// How often the thread that reads keys looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(200);

/// The terminal, until this is dropped.
struct Taken(DefaultTerminal);

impl Taken {
    fn take() -> anyhow::Result<Self> {
        match ratatui::try_init() {
            Ok(terminal) => Ok(Self(terminal)),
            Err(error) => {
                // What was done of it is undone; it may be that there was nothing to undo.
                let _ = ratatui::try_restore();
                Err(error).context("cannot set up the terminal; `kwitness top --once` needs none")
            }
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        // The terminal may be gone.
        let _ = self.0.show_cursor();
        let _ = ratatui::try_restore();
    }
}

/// Shows the samples until a key or a signal ends it.
pub(super) async fn run(mut samples: UsageWatch, mut model: Model, is_wide: bool) -> anyhow::Result<Code> {
    // Before the terminal is taken: from then on, none of these ends the process.
    let mut signals = Signals::handle()?;
    let has_colours = AutoStream::choice(&io::stdout()) != ColorChoice::Never;
    let times = Times::new(TimeFormat::Clock, false).to_seconds();
    let mut screen = Screen { is_wide, has_colours, times, list: ListState::default() };
    let mut terminal = Taken::take()?;
    let mut keys = read_keys()?;
    loop {
        terminal.0.draw(|frame| screen.draw(frame, &model, Utc::now())).context("cannot draw")?;
        tokio::select! {
            item = samples.next() => match item? {
                UsageItem::Sample(mut sample) => model.take(&mut sample),
                UsageItem::Disconnected(error) => model.disconnected(error.to_string()),
                UsageItem::Reconnected => {}
            },
            event = keys.recv() => match event {
                Some(Event::Key(key)) if key.kind == KeyEventKind::Release => {}
                Some(Event::Key(key)) if key.modifiers.contains(KeyModifiers::CONTROL) => {
                    if key.code == KeyCode::Char('c') {
                        return Ok(Code::Interrupted);
                    }
                }
                Some(Event::Key(key)) => {
                    // A terminal sends Alt and a key as it sends Escape and, at once, that key.
                    let escape = key.modifiers.contains(KeyModifiers::ALT).then_some(KeyCode::Esc);
                    if escape.into_iter().chain([key.code]).any(|key| model.press(key)) {
                        return Ok(Code::Success);
                    }
                },
                // The next drawing has the new size.
                Some(_) => {}
                None => anyhow::bail!("cannot read the terminal"),
            },
            () = signals.next() => return Ok(Code::Success),
        }
    }
}

/// Reads keys on a thread of its own, until the receiver is dropped or the terminal is gone.
fn read_keys() -> anyhow::Result<mpsc::Receiver<Event>> {
    let (sender, receiver) = mpsc::channel(KEYS);
    let read = move || {
        while !sender.is_closed() {
            match event::poll(LOOK).and_then(|has_one| has_one.then(event::read).transpose()) {
                Ok(None) => {}
                Ok(Some(event)) => {
                    if sender.blocking_send(event).is_err() {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    };
    std::thread::Builder::new().name("keys".to_owned()).spawn(read).context("cannot start a thread")?;
    Ok(receiver)
}

/// SIGTERM and SIGHUP.
#[cfg(unix)]
struct Signals([tokio::signal::unix::Signal; 2]);

#[cfg(unix)]
impl Signals {
    fn handle() -> anyhow::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let handled = |kind| signal(kind).context("cannot handle signals");
        Ok(Self([handled(SignalKind::terminate())?, handled(SignalKind::hangup())?]))
    }

    async fn next(&mut self) {
        let [terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// Elsewhere there are none.
#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn handle() -> anyhow::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) {
        std::future::pending().await
    }
}
