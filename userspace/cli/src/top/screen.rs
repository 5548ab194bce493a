//! Draws the model: a title, the rows, the details of one, the keys. Never reads a key, and keeps nothing but the place of the list.

use anstyle::{AnsiColor, Color, Effects};
use chrono::{DateTime, Utc};
use kwitness_api::text::escape;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{self, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Clear, List, ListItem, ListState, Paragraph, Wrap};

use super::columns;
use super::model::{Mode, Model};
use crate::describe::{BAD, FAINT};
use crate::table::Cell;
use crate::time::Times;

const KEYS: &str = "q quit  j/k move  s sort  r reverse  / filter  ? help";

const HELP: &[(&str, &str)] = &[
    ("q, Ctrl-C", "quit"),
    ("arrows, j k, g G", "move the selection; PgUp and PgDn by ten rows"),
    ("s", "next order: time, share, usage, rate, throttling, OOM, name"),
    ("r", "reverse the order"),
    ("/", "only names with this text; Enter keeps it, Esc drops it"),
    ("Esc", "no selection, no filter"),
    ("", ""),
    ("USAGE LIMIT %LIM", "memory, page cache included; the container's own limit"),
    ("FILL/S LEFT", "growth over the last 5 s; time to the limit at that rate"),
    ("THR", "share of the CPU quota's periods that were throttled"),
    ("OOM", "time since the last OOM kill of that container name"),
    ("VERDICT", "the worst of its limits; `kwitness verify` says why"),
    ("-", "unknown, or none: see the lines below the rows"),
];

/// How it looks, whatever is shown.
#[derive(Debug)]
pub(super) struct Screen {
    pub(super) is_wide: bool,
    pub(super) has_colours: bool,
    pub(super) times: Times,
    /// Where the list stands.
    pub(super) list: ListState,
}

impl Screen {
    /// Draws all of it.
    pub(super) fn draw(&mut self, frame: &mut Frame<'_>, model: &Model, now: DateTime<Utc>) {
        let [title, headings, rows, details, keys] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Min(0),
            Constraint::Length(2),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        frame.render_widget(self.title(model, title.width), title);
        self.rows(frame, model, [headings, rows], now);
        let of_row = || model.detailed().map(|row| columns::details(row, now));
        let text = model.outage().map(str::to_owned).or_else(of_row).unwrap_or_default();
        let text = Paragraph::new(escape(&text).into_owned()).wrap(Wrap { trim: true });
        frame.render_widget(text, details);
        let bottom = match model.mode() {
            Mode::Filter => format!("/{}_", escape(model.filter())),
            Mode::Rows | Mode::Help if model.filter().is_empty() => KEYS.to_owned(),
            Mode::Rows | Mode::Help => format!("/{}  (Esc drops it)", escape(model.filter())),
        };
        frame.render_widget(Line::from(bottom).style(self.faint()), keys);
        if model.mode() == Mode::Help {
            let area = rows.union(headings);
            frame.render_widget(Clear, area);
            frame.render_widget(help(), area);
        }
    }

    fn title(&self, model: &Model, width: u16) -> Line<'static> {
        let Some(time) = model.time() else {
            let text = model.outage().map_or("waiting for the first sample", |_| "waiting for the daemon");
            return Line::from(format!("kwitness top: {text}"));
        };
        let at = self.times.show(Some(time));
        if model.outage().is_some() {
            let text = format!("STALE since {at}: the daemon is gone, reconnecting");
            return Line::from(text).style(self.style(BAD.bold()));
        }
        let (shown, count) = (model.rows().count(), model.count());
        let shown = if shown == count { format!("{count}") } else { format!("{shown} of {count}") };
        let (sort, is_reversed) = model.order();
        let reversed = if is_reversed { ", reversed" } else { "" };
        let shown = format!("{shown} containers");
        let left = [
            format!("kwitness top: {shown} by {}{reversed}", sort.words()),
            format!("{shown} by {}{reversed}", sort.words()),
        ];
        let has_room = |text: &String| text.chars().count() + 1 + at.len() <= usize::from(width);
        let left = left.into_iter().find(has_room).unwrap_or(shown);
        let fill = usize::from(width).saturating_sub(left.chars().count() + at.len()).max(1);
        Line::from(format!("{left}{}{at}", " ".repeat(fill)))
    }

    fn rows(
        &mut self,
        frame: &mut Frame<'_>,
        model: &Model,
        [headings, area]: [Rect; 2],
        now: DateTime<Utc>,
    ) {
        let rows: Vec<_> = model.rows().collect();
        let width = Some(usize::from(area.width));
        let (mut table, cells) = columns::table(&rows, width, self.is_wide, model.has_namespaces(), now);
        table.fit(&cells);
        let line = |row: &[Cell]| {
            let spans = table.spans(row).into_iter();
            Line::from_iter(spans.map(|(text, style)| Span::styled(text, self.style(style))))
        };
        frame.render_widget(line(&table.headings()), headings);
        let old = if model.outage().is_some() { self.faint() } else { Style::new() };
        let items: Vec<_> = cells.iter().map(|cells| ListItem::new(line(cells))).collect();
        let list = List::new(items).style(old).highlight_style(Style::new().add_modifier(Modifier::REVERSED));
        self.list.select(model.selected_row());
        frame.render_stateful_widget(list, area, &mut self.list);
    }

    fn faint(&self) -> Style {
        self.style(FAINT)
    }

    /// The same style on a screen.
    fn style(&self, style: anstyle::Style) -> Style {
        let effects = style.get_effects();
        let has = |effect, modifier| if effects.contains(effect) { modifier } else { Modifier::empty() };
        let modifiers = has(Effects::BOLD, Modifier::BOLD) | has(Effects::DIMMED, Modifier::DIM);
        let styled = Style::new().add_modifier(modifiers);
        match style.get_fg_color() {
            Some(Color::Ansi(color)) if self.has_colours => styled.fg(on_screen(color)),
            _ => styled,
        }
    }
}

fn on_screen(color: AnsiColor) -> style::Color {
    match color {
        AnsiColor::Red => style::Color::Red,
        AnsiColor::Green => style::Color::Green,
        AnsiColor::Yellow => style::Color::Yellow,
        _ => style::Color::Reset,
    }
}

fn help() -> Paragraph<'static> {
    let width = HELP.iter().map(|(key, _)| key.len()).max().unwrap_or_default();
    let lines = HELP.iter().map(|(key, meaning)| Line::from(format!("{key:width$}  {meaning}")));
    Paragraph::new(lines.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::KeyCode;

    use super::*;
    use crate::time::TimeFormat;
    use crate::top::model::Sort;
    use crate::top::testing::{NOW, hostile, sample};

    /// What the screen shows after these keys.
    fn shown(width: u16, height: u16, is_wide: bool, model: &mut Model, keys: &[KeyCode]) -> String {
        for key in keys {
            assert!(!model.press(*key), "{key:?} ends it");
        }
        let times = Times::at(TimeFormat::Clock, NOW).to_seconds();
        let mut screen = Screen { is_wide, has_colours: true, times, list: ListState::default() };
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        let now = DateTime::parse_from_rfc3339(NOW).unwrap().to_utc();
        terminal.draw(|frame| screen.draw(frame, model, now)).unwrap();
        terminal.backend().to_string()
    }

    fn model() -> Model {
        let mut model = Model::new(Sort::Time, false, true);
        model.take(&mut sample());
        model
    }

    #[test]
    fn the_help_fits_80_columns() {
        let width = HELP.iter().map(|(key, _)| key.len()).max().unwrap();
        assert!(HELP.iter().all(|(_, meaning)| width + 2 + meaning.len() <= 80) && KEYS.len() <= 80);
    }

    #[test]
    fn who_dies_next_on_80_columns() {
        insta::assert_snapshot!("top_80", shown(80, 14, false, &mut model(), &[]));
    }

    #[test]
    fn who_dies_next_on_40_columns() {
        insta::assert_snapshot!("top_40", shown(40, 14, false, &mut model(), &[]));
    }

    #[test]
    fn a_wider_terminal_has_namespaces() {
        insta::assert_snapshot!(
            "top_120",
            shown(120, 14, false, &mut model(), &[KeyCode::Down, KeyCode::Down])
        );
    }

    #[test]
    fn wide_has_everything() {
        insta::assert_snapshot!("top_wide", shown(160, 14, true, &mut model(), &[]));
    }

    #[test]
    fn the_filter_is_shown_as_it_is_typed() {
        let keys = ['/', 'j', 'o', 'b'].map(KeyCode::Char);
        insta::assert_snapshot!("top_filter", shown(80, 10, false, &mut model(), &keys));
    }

    #[test]
    fn the_help_explains_keys_and_columns() {
        insta::assert_snapshot!("top_help", shown(80, 18, false, &mut model(), &[KeyCode::Char('?')]));
    }

    #[test]
    fn rows_of_a_daemon_that_is_gone_stay_and_are_stale() {
        let mut model = model();
        model.disconnected("no daemon at /run/kwitness/kwitness.sock: the daemon is stopping".to_owned());
        insta::assert_snapshot!("top_stale", shown(80, 14, false, &mut model, &[]));
        model.take(&mut sample());
        assert!(!shown(80, 14, false, &mut model, &[]).contains("STALE"));
    }

    #[test]
    fn before_the_first_sample_it_says_what_it_waits_for() {
        let mut model = Model::new(Sort::Time, false, true);
        assert!(shown(80, 5, false, &mut model, &[]).contains("waiting for the first sample"));
        model.disconnected("gone".to_owned());
        assert!(shown(80, 5, false, &mut model, &[]).contains("waiting for the daemon"));
    }

    #[test]
    fn other_peoples_text_reaches_no_terminal() {
        let mut model = Model::new(Sort::Time, false, true);
        model.take(&mut hostile());
        let text = shown(
            200,
            8,
            true,
            &mut model,
            &[KeyCode::Char('/'), KeyCode::Char('\u{202e}'), KeyCode::Backspace],
        );
        let lines: Vec<_> = text.lines().collect();
        assert!(lines.iter().all(|line| !line.chars().any(char::is_control)), "{text}");
        assert!(text.contains("\\x1b]0;owned\\x07") && !text.contains('\u{202e}'), "{text}");
    }

    #[test]
    fn a_terminal_that_is_too_small_is_no_error() {
        for (width, height) in [(1, 1), (20, 2), (10, 40)] {
            shown(width, height, false, &mut model(), &[]);
        }
    }
}
