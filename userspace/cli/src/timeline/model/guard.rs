//! The guard on a container's track: a span for each hold, marks for what it decided.

use super::{Mark, Micros, Point, Span, Style};
use kwitness_api::proto::event::Kind;

/// What an event of the guard adds to a track.
#[derive(Default)]
pub(super) struct Drawn {
    pub(super) span: Option<Span>,
    pub(super) mark: Option<Mark>,
    pub(super) usage: Option<Point>,
}

/// None of it for another event.
pub(super) fn drawn(kind: &Kind, at: Micros, detail: String) -> Drawn {
    let mark = |name: &str, style, detail| Some(Mark { name: name.to_owned(), at, style, detail });
    match kind {
        Kind::GuardHeld(held) => Drawn {
            mark: mark("guardHeld", Style::Notice, detail),
            usage: Some(Point { at, value: Some(held.usage_bytes) }),
            span: None,
        },
        Kind::GuardContinued(continued) => {
            let held = Micros::try_from(continued.held_ns / 1000).unwrap_or(Micros::MAX);
            let comm = continued.process.as_ref().map_or("", |process| process.comm.as_str());
            let span = Span {
                name: format!("{comm} held"),
                from: at.saturating_sub(held),
                to: at,
                is_open: false,
                is_earlier: false,
                style: Style::Notice,
                detail,
            };
            Drawn { span: Some(span), ..Drawn::default() }
        }
        Kind::GuardRaised(_) => Drawn { mark: mark("guardRaised", Style::Good, detail), ..Drawn::default() },
        Kind::GuardRefused(refused) => {
            let name = format!("guardRefused {}", refused.reason);
            Drawn { mark: mark(&name, Style::Bad, detail), ..Drawn::default() }
        }
        Kind::GuardReturned(_) => {
            Drawn { mark: mark("guardReturned", Style::Limit, detail), ..Drawn::default() }
        }
        _ => Drawn::default(),
    }
}
