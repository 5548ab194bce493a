//! A program at a terminal: a pty of 80 columns, the keys that are pressed at it, and what is to be seen on it.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::Signal;
use nix::sys::termios::{LocalFlags, tcgetattr};

use crate::process::{self, Killed, wait_for};

const LIMIT: Duration = Duration::from_secs(60);
const ROWS: NonZeroU16 = NonZeroU16::new(24).unwrap();
const COLUMNS: NonZeroU16 = NonZeroU16::new(80).unwrap();

/// A terminal with one program at it, which is killed when this is dropped.
pub struct Pty {
    child: Killed,
    keys: File,
    /// The program's side, kept open so that its modes can be looked at after the program's end.
    terminal: OwnedFd,
    screen: Arc<Mutex<vt100::Parser>>,
}

impl Pty {
    pub fn start(mut command: Command) -> Result<Self> {
        let size = Winsize { ws_row: ROWS.get(), ws_col: COLUMNS.get(), ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(&size, None).context("open a pty")?;
        let side = || pair.slave.try_clone().map(Stdio::from).context("duplicate the terminal");
        command.stdin(side()?).stdout(side()?).stderr(side()?);
        command.env("TERM", "xterm-256color").env_remove("NO_COLOR").env("TZ", "UTC");
        let child = command.spawn().with_context(|| format!("start {command:?}"))?;
        let screen = Arc::new(Mutex::new(vt100::Parser::new(ROWS, COLUMNS, 0)));
        let (mut output, shown) = (File::from(pair.master), Arc::clone(&screen));
        let keys = output.try_clone().context("duplicate the pty")?;
        let show = move || {
            let mut bytes = [0; 4096];
            // Nothing is left to read once the terminal is closed.
            while let Ok(length @ 1..) = output.read(&mut bytes) {
                lock(&shown).process(&bytes[..length]);
            }
        };
        std::thread::Builder::new().name("pty".to_owned()).spawn(show).context("start a thread")?;
        Ok(Self { child: Killed(child), keys, terminal: pair.slave, screen })
    }

    pub fn text(&self) -> String {
        lock(&self.screen).screen().contents()
    }

    pub async fn wait_text(&self, text: &str) -> Result<()> {
        self.wait(&format!("`{text}` on the terminal"), |shown| shown.contains(text)).await
    }

    pub async fn wait_gone(&self, text: &str) -> Result<()> {
        self.wait(&format!("`{text}` to leave the terminal"), |shown| !shown.contains(text)).await
    }

    async fn wait(&self, what: &str, is_right: impl Fn(&str) -> bool) -> Result<()> {
        let seen = wait_for(what, LIMIT, async || Ok(is_right(&self.text()).then_some(())));
        seen.await.with_context(|| format!("it shows:\n{}", self.text()))
    }

    pub fn press(&mut self, keys: &str) -> Result<()> {
        self.keys.write_all(keys.as_bytes()).context("write to the pty")
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        process::signal(self.child.id(), signal)
    }

    /// Whether the program has the terminal for itself: another screen, keys unprocessed.
    pub fn is_taken(&self) -> Result<bool> {
        let modes = tcgetattr(&self.terminal).context("look at the terminal's modes")?.local_flags;
        let is_raw = !modes.intersects(LocalFlags::ICANON | LocalFlags::ECHO);
        Ok(is_raw && lock(&self.screen).screen().alternate_screen())
    }

    /// Whether the terminal is as it was: its own screen, a cursor, keys processed.
    pub fn is_restored(&self) -> Result<bool> {
        let modes = tcgetattr(&self.terminal).context("look at the terminal's modes")?.local_flags;
        let parser = lock(&self.screen);
        let screen = parser.screen();
        let is_plain = !screen.alternate_screen() && !screen.hide_cursor();
        Ok(is_plain && modes.contains(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG))
    }

    /// Waits for the program's end, and until everything that it wrote is shown.
    pub async fn wait_restored(&mut self) -> Result<ExitStatus> {
        let child = &mut self.child;
        let status = wait_for("the program's end", LIMIT, async || child.try_wait().context("wait"));
        let status =
            status.await.with_context(|| format!("it shows:\n{}", lock(&self.screen).screen().contents()))?;
        wait_for("the terminal to be restored", LIMIT, async || Ok(self.is_restored()?.then_some(())))
            .await?;
        Ok(status)
    }
}

fn lock(screen: &Mutex<vt100::Parser>) -> MutexGuard<'_, vt100::Parser> {
    screen.lock().unwrap_or_else(PoisonError::into_inner)
}
