/// What happens after the machine has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    PowerOff,
    /// Restart the machine.
    Restart,
}
