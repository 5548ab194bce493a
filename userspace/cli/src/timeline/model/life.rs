//! A container's life on its track: its cgroup, its time of running, each program, and how it stopped.

use super::{Draft, Mark, Start, Style, span};
use kwitness_api::proto;
use kwitness_api::proto::event::Kind;

impl Draft {
    /// Of another event, nothing.
    pub(super) fn life(&mut self, kind: &Kind, start: Start, text: String) {
        let at = start.at;
        match kind {
            // A scan finds again what had begun by then.
            Kind::Created(_) if start.is_earlier => {
                self.created.get_or_insert(start);
            }
            Kind::Created(_) => self.created = Some(start),
            Kind::Started(started) => {
                if start.is_earlier {
                    self.running.get_or_insert(start);
                } else {
                    self.running = Some(start);
                }
                self.process(started.process.as_ref(), start, started.program.as_deref(), Style::Main);
            }
            Kind::Exec(exec) => {
                self.process(exec.process.as_ref(), start, Some(&exec.program), Style::Exec);
            }
            Kind::Exited(exited) => {
                let key = exited.process.as_ref().map(|process| (process.pid, process.start_time));
                if let Some((start, name, style)) = key.and_then(|key| self.processes.remove(&key)) {
                    self.spans.push(span(name, start, Some(at), style, text));
                }
            }
            Kind::Stopped(stopped) => {
                let is_bad = stopped.main_oom_killed
                    || !matches!(
                        stopped.main_status.as_ref().and_then(|of| of.status),
                        None | Some(proto::exit_status::Status::Code(0))
                    );
                let mark = Mark {
                    name: "stopped".to_owned(),
                    at,
                    style: if is_bad { Style::Bad } else { Style::Notice },
                    detail: text.clone(),
                };
                self.marks.push(mark);
                // No process is left. The event of its exit may follow.
                for (_, (start, name, style)) in self.processes.drain() {
                    self.spans.push(span(name, start, Some(at), style, "ended by then".to_owned()));
                }
                if let Some(start) = self.running.take() {
                    self.spans.push(span("running".to_owned(), start, Some(at), Style::Life, text));
                }
            }
            Kind::Deleted(_) => {
                if let Some(start) = self.created.take() {
                    self.spans.push(span("cgroup".to_owned(), start, Some(at), Style::Notice, text));
                }
            }
            _ => {}
        }
    }
}
