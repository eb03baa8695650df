//! The result of a command.

/// The result of a command.
#[derive(Debug)]
pub struct Ran {
    pub status: i32,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Ran {
    /// Standard output as text.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Asserts success and returns standard output.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.status, 0, "stdout: {}\nstderr: {}", self.out(), self.stderr);
        self.out()
    }

    /// Asserts failure, and that the last line contains all of `words`: one clear line.
    #[track_caller]
    pub fn fails_with(self, words: &[&str]) -> Self {
        assert_ne!(self.status, 0, "it should have failed; stdout: {}\nstderr: {}", self.out(), self.stderr);
        let last = self.stderr.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
        assert!(last.starts_with("garret: "), "the last line is not from garret: {}", self.stderr);
        for word in words {
            assert!(last.contains(word), "`{word}` is not in `{last}`; standard error: {}", self.stderr);
        }
        self
    }
}
