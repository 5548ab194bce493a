//! A timeline as a Perfetto trace: protobuf `TracePacket`s with `TrackEvent`s.
//!
//! Protobuf, and not the older JSON format, because a trace then has clocks: its times are `CLOCK_BOOTTIME`, as in traces of the
//! kernel and of other programs, which can be merged with it by concatenation: its tracks and its sequence have numbers of their own.
//! Tracks can also be nested, and have exact nanoseconds. The messages are the few that are needed, with the field numbers of
//! `protos/perfetto/trace` in Perfetto's sources.

use kwitness_api::text::escape;
use prost::Message;
use sha2::{Digest as _, Sha256};

use super::micros::Micros;
use super::model::{Span, Style, Timeline, Track};

#[derive(Clone, PartialEq, Message)]
pub(super) struct Trace {
    #[prost(message, repeated, tag = "1")]
    pub packet: Vec<TracePacket>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct TracePacket {
    #[prost(message, optional, tag = "6")]
    pub clock_snapshot: Option<ClockSnapshot>,
    #[prost(uint64, optional, tag = "8")]
    pub timestamp: Option<u64>,
    #[prost(uint32, optional, tag = "10")]
    pub trusted_packet_sequence_id: Option<u32>,
    #[prost(message, optional, tag = "11")]
    pub track_event: Option<TrackEvent>,
    #[prost(uint32, optional, tag = "13")]
    pub sequence_flags: Option<u32>,
    #[prost(uint32, optional, tag = "58")]
    pub timestamp_clock_id: Option<u32>,
    #[prost(message, optional, tag = "60")]
    pub track_descriptor: Option<TrackDescriptor>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ClockSnapshot {
    #[prost(message, repeated, tag = "1")]
    pub clocks: Vec<Clock>,
    #[prost(int32, optional, tag = "2")]
    pub primary_trace_clock: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Clock {
    #[prost(uint32, optional, tag = "1")]
    pub clock_id: Option<u32>,
    #[prost(uint64, optional, tag = "2")]
    pub timestamp: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct TrackDescriptor {
    #[prost(uint64, optional, tag = "1")]
    pub uuid: Option<u64>,
    #[prost(string, optional, tag = "2")]
    pub name: Option<String>,
    #[prost(uint64, optional, tag = "5")]
    pub parent_uuid: Option<u64>,
    #[prost(message, optional, tag = "8")]
    pub counter: Option<CounterDescriptor>,
    #[prost(int32, optional, tag = "11")]
    pub child_ordering: Option<i32>,
    #[prost(int32, optional, tag = "12")]
    pub sibling_order_rank: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct CounterDescriptor {
    #[prost(int32, optional, tag = "3")]
    pub unit: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct TrackEvent {
    #[prost(message, repeated, tag = "4")]
    pub debug_annotations: Vec<DebugAnnotation>,
    #[prost(int32, optional, tag = "9")]
    pub r#type: Option<i32>,
    #[prost(uint64, optional, tag = "11")]
    pub track_uuid: Option<u64>,
    #[prost(string, repeated, tag = "22")]
    pub categories: Vec<String>,
    #[prost(string, optional, tag = "23")]
    pub name: Option<String>,
    #[prost(int64, optional, tag = "30")]
    pub counter_value: Option<i64>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct DebugAnnotation {
    #[prost(string, optional, tag = "6")]
    pub string_value: Option<String>,
    #[prost(string, optional, tag = "10")]
    pub name: Option<String>,
}

/// `BuiltinClock`
const REALTIME: u32 = 1;
const BOOTTIME: u32 = 6;
/// `TrackEvent.Type`
pub(super) const SLICE_BEGIN: i32 = 1;
pub(super) const SLICE_END: i32 = 2;
pub(super) const INSTANT: i32 = 3;
pub(super) const COUNTER: i32 = 4;
/// `CounterDescriptor.Unit.UNIT_SIZE_BYTES`
const BYTES: i32 = 3;
/// `TrackDescriptor.ChildTracksOrdering.EXPLICIT`
const EXPLICIT: i32 = 3;
/// `TracePacket.SequenceFlags.SEQ_INCREMENTAL_STATE_CLEARED`
const STATE_CLEARED: u32 = 1;

/// The trace's bytes.
pub fn trace(timeline: &Timeline) -> Vec<u8> {
    let id = id(timeline);
    let mut writer = Writer { timeline, packets: Vec::new(), uuid: id, sequence: (id >> 32) as u32 | 1 };
    writer.clocks();
    let root = writer.track(TrackDescriptor {
        name: Some(text(&format!("{} on {}", timeline.subject, timeline.node))),
        child_ordering: Some(EXPLICIT),
        ..TrackDescriptor::default()
    });
    for (rank, track) in timeline.tracks.iter().enumerate() {
        writer.tracks(root, rank, track);
    }
    // The sequence's state begins with the first packet.
    if let Some(first) = writer.packets.first_mut() {
        first.sequence_flags = Some(STATE_CLEARED);
    }
    Trace { packet: writer.packets }.encode_to_vec()
}

/// What no other trace has, as far as can be: by it, tracks are the same over all that is concatenated.
fn id(timeline: &Timeline) -> u64 {
    let Timeline { subject, node, from, .. } = timeline;
    let hash = Sha256::digest(format!("{node}\0{subject}\0{from}"));
    hash.iter().take(8).fold(0, |id, byte| id << 8 | u64::from(*byte))
}

struct Writer<'a> {
    timeline: &'a Timeline,
    packets: Vec<TracePacket>,
    /// Of the last track.
    uuid: u64,
    /// The one sequence of this trace: not 0.
    sequence: u32,
}

impl Writer<'_> {
    /// Both clocks at one moment. A timeline without kernel times has the wall clock only.
    fn clocks(&mut self) {
        let at = self.boot(self.timeline.to);
        let wall = u64::try_from(self.timeline.to.saturating_mul(1000)).unwrap_or_default();
        let clock = |id, timestamp| Clock { clock_id: Some(id), timestamp: Some(timestamp) };
        let snapshot = ClockSnapshot {
            clocks: vec![clock(BOOTTIME, at), clock(REALTIME, wall)],
            primary_trace_clock: i32::try_from(BOOTTIME).ok(),
        };
        self.packet(TracePacket { clock_snapshot: Some(snapshot), ..TracePacket::default() });
    }

    fn boot(&self, at: Micros) -> u64 {
        let wall = at.saturating_mul(1000);
        u64::try_from(wall.saturating_sub(self.timeline.boot_offset.unwrap_or_default())).unwrap_or_default()
    }

    fn packet(&mut self, packet: TracePacket) {
        self.packets.push(TracePacket { trusted_packet_sequence_id: Some(self.sequence), ..packet });
    }

    fn track(&mut self, track: TrackDescriptor) -> u64 {
        self.uuid = self.uuid.wrapping_add(1);
        let track_descriptor = Some(TrackDescriptor { uuid: Some(self.uuid), ..track });
        self.packet(TracePacket { track_descriptor, ..TracePacket::default() });
        self.uuid
    }

    fn event(&mut self, at: Micros, track: u64, event: TrackEvent) {
        let packet = TracePacket {
            timestamp: Some(self.boot(at)),
            timestamp_clock_id: Some(BOOTTIME),
            track_event: Some(TrackEvent { track_uuid: Some(track), ..event }),
            ..TracePacket::default()
        };
        self.packet(packet);
    }

    fn tracks(&mut self, root: u64, rank: usize, track: &Track) {
        let child = |name: &str, parent, rank: usize| TrackDescriptor {
            name: Some(text(name)),
            parent_uuid: Some(parent),
            child_ordering: Some(EXPLICIT),
            sibling_order_rank: i32::try_from(rank).ok(),
            ..TrackDescriptor::default()
        };
        let own = self.track(child(&track.name, root, rank));
        for mark in &track.marks {
            let event = TrackEvent {
                r#type: Some(INSTANT),
                name: Some(text(&mark.name)),
                debug_annotations: annotations(&mark.detail),
                categories: vec!["kwitness".to_owned()],
                ..TrackEvent::default()
            };
            self.event(mark.at, own, event);
        }
        for (rank, lane) in track.lanes.iter().enumerate() {
            let is_process = |span: &Span| matches!(span.style, Style::Main | Style::Exec);
            let first = lane.first();
            let name = first.map_or("", |span| if is_process(span) { "processes" } else { &span.name });
            let uuid = self.track(child(name, own, rank));
            for span in lane {
                let begin = TrackEvent {
                    r#type: Some(SLICE_BEGIN),
                    name: Some(text(&span.name)),
                    debug_annotations: annotations(&span.detail),
                    categories: vec!["kwitness".to_owned()],
                    ..TrackEvent::default()
                };
                self.event(span.from, uuid, begin);
                self.event(span.to, uuid, TrackEvent { r#type: Some(SLICE_END), ..TrackEvent::default() });
            }
        }
        for (rank, curve) in track.curves.iter().enumerate() {
            let rank = track.lanes.len() + rank;
            let counter = Some(CounterDescriptor { unit: Some(BYTES) });
            let uuid = self.track(TrackDescriptor { counter, ..child(&curve.name, own, rank) });
            // "max" is no number: the curve has a hole there.
            for (at, value) in curve.points.iter().filter_map(|point| Some((point.at, point.value?))) {
                let counter_value = i64::try_from(value).ok();
                let r#type = Some(COUNTER);
                self.event(at, uuid, TrackEvent { r#type, counter_value, ..TrackEvent::default() });
            }
        }
    }
}

fn annotations(detail: &str) -> Vec<DebugAnnotation> {
    vec![DebugAnnotation { name: Some("detail".to_owned()), string_value: Some(text(detail)) }]
}

fn text(text: &str) -> String {
    escape(text).into_owned()
}
