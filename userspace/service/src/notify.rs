//! The service manager: systemd's `sd_notify(3)`.

/// Reports readiness to systemd if this process is a unit with `Type=notify`.
pub fn notify_ready() {
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!(%error, "cannot notify systemd of readiness");
    }
}
