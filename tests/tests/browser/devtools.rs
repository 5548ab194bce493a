//! A headless Chromium, by the DevTools protocol over pipes: one JSON object a message, each ended by a NUL.
//!
//! Owns the browser's process and the order of messages. Knows nothing of what a page shows.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kwitness_tests::process::Killed;
use serde_json::{Value, json};

/// Of Debian's package `chromium-headless-shell`, whose `/usr/bin` has a script that would survive it.
const PROGRAM: &str = "/usr/lib/chromium/chromium-headless-shell";
const LIMIT: Duration = Duration::from_secs(60);
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

/// A running browser; ended when dropped.
pub(crate) struct Browser {
    _process: Killed,
    to: UnixStream,
    from: BufReader<UnixStream>,
    last_id: u64,
    events: Vec<Value>,
}

pub(crate) struct Page<'a> {
    browser: &'a mut Browser,
    session: String,
}

impl Browser {
    pub(crate) fn start(directory: &Path) -> Result<Self> {
        let (ours, theirs) = UnixStream::pair().context("make a pair of sockets")?;
        ours.set_read_timeout(Some(LIMIT)).context("limit the waiting")?;
        let mut command = Command::new("/bin/sh");
        // Its messages are on the descriptors 3 and 4.
        command.args(["-c", "exec \"$@\" 3<&0 4>&1 </dev/null >/dev/null", "sh", PROGRAM]);
        command.args([
            "--remote-debugging-pipe",
            "--headless",
            // It runs as root, and in namespaces of the test's already.
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--window-size=1280,900",
            "about:blank",
        ]);
        command.arg(format!("--user-data-dir={}", directory.join("profile").display()));
        command.env("HOME", directory).stderr(Stdio::null());
        command.stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs.try_clone().context("duplicate")?)));
        command.stdout(Stdio::from(std::os::fd::OwnedFd::from(theirs)));
        let process = command.spawn().context("start the browser")?;
        let from = BufReader::new(ours.try_clone().context("duplicate the socket")?);
        Ok(Self { _process: Killed(process), to: ours, from, last_id: 0, events: Vec::new() })
    }

    pub(crate) fn open(&mut self, file: &Path) -> Result<Page<'_>> {
        let target = self.call(None, "Target.createTarget", json!({"url": "about:blank"}))?;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let session = self.call(None, "Target.attachToTarget", attach)?;
        let session = session["sessionId"].as_str().context("no session")?.to_owned();
        let mut page = Page { browser: self, session };
        for domain in ["Network", "Page", "Runtime", "Log"] {
            page.call(&format!("{domain}.enable"), json!({}))?;
        }
        let offline =
            json!({"offline": true, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1});
        page.call("Network.emulateNetworkConditions", offline)?;
        page.call("Page.navigate", json!({"url": url(file)}))?;
        page.browser.wait("Page.loadEventFired")?;
        Ok(page)
    }

    fn call(&mut self, session: Option<&str>, method: &str, parameters: Value) -> Result<Value> {
        self.last_id += 1;
        let mut message = json!({"id": self.last_id, "method": method, "params": parameters});
        if let Some(session) = session {
            message["sessionId"] = session.into();
        }
        let mut bytes = serde_json::to_vec(&message).context("write a message")?;
        bytes.push(0);
        self.to.write_all(&bytes).with_context(|| format!("send {method}"))?;
        loop {
            let answer = self.receive().with_context(|| format!("wait for the answer to {method}"))?;
            match answer.get("id").and_then(Value::as_u64) {
                Some(id) if id == self.last_id => {
                    ensure!(answer.get("error").is_none(), "{method}: {answer}");
                    return Ok(answer["result"].clone());
                }
                _ => self.events.push(answer),
            }
        }
    }

    fn wait(&mut self, method: &str) -> Result<()> {
        while !self.events.iter().any(|event| event["method"] == method) {
            let event = self.receive().with_context(|| format!("wait for {method}"))?;
            self.events.push(event);
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<Value> {
        let mut message = Vec::new();
        self.from.read_until(0, &mut message).context("read from the browser")?;
        if message.pop() != Some(0) {
            bail!("the browser has ended");
        }
        serde_json::from_slice(&message).context("parse a message")
    }
}

impl Page<'_> {
    fn call(&mut self, method: &str, parameters: Value) -> Result<Value> {
        self.browser.call(Some(&self.session), method, parameters)
    }

    fn evaluate(&mut self, expression: &str) -> Result<Value> {
        let answer =
            self.call("Runtime.evaluate", json!({"expression": expression, "returnByValue": true}))?;
        ensure!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
        Ok(answer["result"]["value"].clone())
    }

    pub(crate) fn text(&mut self, expression: &str) -> Result<String> {
        let value = self.evaluate(expression)?;
        Ok(value.as_str().with_context(|| format!("{expression} is {value}"))?.to_owned())
    }

    pub(crate) fn number(&mut self, expression: &str) -> Result<f64> {
        let value = self.evaluate(expression)?;
        value.as_f64().with_context(|| format!("{expression} is {value}"))
    }

    /// Clicks in the middle of the first element that a selector finds, as a mouse does.
    pub(crate) fn click(&mut self, selector: &str) -> Result<()> {
        let place = self.evaluate(&format!(
            "(() => {{ const found = document.querySelector({selector:?}); \
             if (!found) return null; \
             found.scrollIntoView({{ block: 'center' }}); \
             const box = found.getBoundingClientRect(); \
             return [box.x + box.width / 2, box.y + box.height / 2]; }})()"
        ))?;
        ensure!(place.is_array(), "there is no {selector}");
        for kind in ["mousePressed", "mouseReleased"] {
            let event =
                json!({"type": kind, "x": place[0], "y": place[1], "button": "left", "clickCount": 1});
            self.call("Input.dispatchMouseEvent", event)?;
        }
        Ok(())
    }

    pub(crate) fn prefer(&mut self, scheme: &str) -> Result<()> {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", features).map(drop)
    }

    pub(crate) fn screenshot(&mut self) -> Result<Vec<u8>> {
        let answer = self.call("Page.captureScreenshot", json!({"format": "png"}))?;
        let image =
            STANDARD.decode(answer["data"].as_str().context("no image")?).context("decode the image")?;
        ensure!(image.starts_with(PNG), "it is no PNG");
        Ok(image)
    }

    /// That nothing but the file was requested, and that nothing failed or was refused by the page's policy.
    pub(crate) fn check_quiet(self, file: &Path) -> Result<()> {
        let of = |method: &'static str| {
            self.browser.events.iter().filter(move |event| event["method"] == method).collect::<Vec<_>>()
        };
        for event in of("Network.requestWillBeSent") {
            let asked = &event["params"]["request"]["url"];
            ensure!(*asked == url(file) || *asked == "about:blank", "the page asks for {asked}");
        }
        let failed = [of("Runtime.exceptionThrown"), of("Log.entryAdded")].concat();
        ensure!(failed.is_empty(), "{failed:#?}");
        Ok(())
    }
}

fn url(file: &Path) -> String {
    format!("file://{}", file.display())
}
