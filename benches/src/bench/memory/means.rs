//! How the harness reclaims memory from a guest: by virtio-mem if the machine has it, else by the balloon.

use crate::subject::Control;

/// The device that reclaims memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Means {
    /// The balloon takes pages from the guest.
    Balloon,
    /// The requested size of virtio-mem is lowered.
    VirtioMem {
        /// The size of the virtio-mem region, in MiB.
        size_mib: u32,
    },
}

impl Means {
    /// The means of a machine with `hotplug_mib` of virtio-mem memory: the balloon if the VMM has no virtio-mem.
    ///
    /// # Errors
    /// The VMM does not answer.
    pub(super) fn of(control: &dyn Control, hotplug_mib: u32) -> anyhow::Result<Self> {
        let plugged = control.plugged_mib()?;
        Ok(plugged.map_or(Self::Balloon, |_| Self::VirtioMem { size_mib: hotplug_mib }))
    }

    /// The name for a report.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Balloon => "the balloon",
            Self::VirtioMem { .. } => "virtio-mem",
        }
    }

    /// Asks the guest to use this much less from now on.
    ///
    /// # Errors
    /// The VMM refuses.
    pub(super) fn ask(self, control: &dyn Control, mib: u32) -> anyhow::Result<()> {
        match self {
            Self::Balloon => control.set_balloon(mib),
            Self::VirtioMem { size_mib } => control.plug(size_mib.saturating_sub(mib)),
        }
    }

    /// How much less the guest uses, in MiB.
    ///
    /// # Errors
    /// The VMM does not answer.
    pub(super) fn taken(self, control: &dyn Control) -> anyhow::Result<u32> {
        match self {
            Self::Balloon => control.balloon_mib(),
            Self::VirtioMem { size_mib } => Ok(size_mib.saturating_sub(control.plugged_mib()?.unwrap_or(0))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// A guest that follows each request at once.
    struct Obedient {
        balloon: Cell<u32>,
        plugged: Option<Cell<u32>>,
    }

    impl Control for Obedient {
        fn set_balloon(&self, mib: u32) -> anyhow::Result<()> {
            self.balloon.set(mib);
            Ok(())
        }

        fn balloon_mib(&self) -> anyhow::Result<u32> {
            Ok(self.balloon.get())
        }

        fn plug(&self, mib: u32) -> anyhow::Result<()> {
            self.plugged.as_ref().unwrap().set(mib);
            Ok(())
        }

        fn plugged_mib(&self) -> anyhow::Result<Option<u32>> {
            Ok(self.plugged.as_ref().map(Cell::get))
        }
    }

    #[test]
    fn memory_is_asked_back_the_way_it_came() {
        for (plugged, means, left) in
            [(None, Means::Balloon, (192, None)), (Some(256), Means::VirtioMem { size_mib: 256 }, (0, Some(64)))]
        {
            let guest = Obedient { balloon: Cell::new(0), plugged: plugged.map(Cell::new) };
            assert_eq!(Means::of(&guest, 256).unwrap(), means);
            means.ask(&guest, 192).unwrap();
            assert_eq!((guest.balloon.get(), guest.plugged_mib().unwrap()), left);
            assert_eq!(means.taken(&guest).unwrap(), 192);
            means.ask(&guest, 0).unwrap();
            assert_eq!(means.taken(&guest).unwrap(), 0);
        }
    }
}
