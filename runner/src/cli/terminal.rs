//! The caller's terminal.

use std::io;

use garret_api::stream::WindowSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// The terminal's size, if standard output is one.
pub fn size() -> Option<WindowSize> {
    let size = tcgetwinsize(io::stdout()).ok()?;
    Some(known(size.ws_row, size.ws_col))
}

/// A terminal that does not know its size says 0: it is taken for one of the usual size.
fn known(rows: u16, columns: u16) -> WindowSize {
    let or = |said: u16, usual| if said > 0 { said } else { usual };
    WindowSize { rows: or(rows, 24), columns: or(columns, 80) }
}

/// Raw mode, for as long as it lives: every key goes to the other side.
pub struct RawMode(Termios);

impl RawMode {
    /// Enters it on standard input.
    ///
    /// # Errors
    /// Standard input is no terminal.
    pub fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Flush, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // The terminal may have gone away; then there is nothing to restore.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_without_a_size_is_of_the_usual_one() {
        for ((rows, columns), expected) in [((0, 0), (24, 80)), ((50, 0), (50, 80)), ((1, 132), (1, 132))] {
            let size = known(rows, columns);
            assert_eq!((size.rows, size.columns), expected);
        }
    }
}
