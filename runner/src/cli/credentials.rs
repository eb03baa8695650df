//! Recognizes names of variables that look like credentials.

/// Harmless names that contain a word which would otherwise mark them.
const HARMLESS: &[&str] = &["SSH_AUTH_SOCK", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "PWD"];
/// Prefixes of services whose variables are mostly credentials.
const PREFIXES: &[&str] = &["AWS_", "AZURE_", "ARM_", "GCP_", "GOOGLE_", "GH_", "GITHUB_", "GITLAB_", "VAULT_", "OP_"];
/// Matches anywhere in a name.
const PARTS: &[&str] =
    &["TOKEN", "SECRET", "PASSW", "PASSPHRASE", "CREDENTIAL", "PRIVATE", "COOKIE", "CONNECTION_STRING"];
/// Matches a whole word between underscores.
const WORDS: &[&str] = &["AUTH", "PASS", "PWD", "PAT", "PIN", "OTP", "DSN", "SESSION", "JWT", "CERT"];
/// Matches at the end of a word: `API_KEY`, `APIKEY`, `KEYS`.
const ENDINGS: &[&str] = &["KEY", "KEYS"];
/// Matches at the end of a name: URLs that hold a password.
const FINAL: &[&str] = &["DATABASE_URL", "REDIS_URL", "MONGO_URL", "MONGODB_URI", "AMQP_URL", "WEBHOOK_URL"];

/// Whether a variable of this name may be a secret, whose value is not sent without consent.
pub(super) fn looks_like_credential(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    if HARMLESS.contains(&name.as_str()) {
        return false;
    }
    PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || PARTS.iter().any(|part| name.contains(part))
        || FINAL.iter().any(|end| name.ends_with(end))
        || name.split('_').any(|word| WORDS.contains(&word) || ENDINGS.iter().any(|end| word.ends_with(end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_credentials_are_recognized() {
        for name in [
            "TOKEN",
            "npm_token",
            "GITHUB_TOKEN",
            "CLIENT_SECRET",
            "PASSWORD",
            "PGPASSWORD",
            "MYSQL_PWD",
            "DB_PASS",
            "SSH_PASSPHRASE",
            "GOOGLE_APPLICATION_CREDENTIALS",
            "AWS_ACCESS_KEY_ID",
            "AWS_SESSION",
            "API_KEY",
            "OPENAI_APIKEY",
            "KEY",
            "SIGNING_KEYS",
            "AZURE_PAT",
            "SENTRY_DSN",
            "DATABASE_URL",
            "APP_DATABASE_URL",
            "STORAGE_CONNECTION_STRING",
            "NPM_AUTH",
            "SESSION_ID",
        ] {
            assert!(looks_like_credential(name), "{name}");
        }
        for name in [
            "HOME",
            "USER",
            "LOGNAME",
            "LANG",
            "LC_ALL",
            "TZ",
            "SHELL",
            "TERM",
            "PATH",
            "PWD",
            "DISPLAY",
            "EDITOR",
            "SSH_AUTH_SOCK",
            "AWS_REGION",
            "XDG_RUNTIME_DIR",
            "KEYMAP",
            "KEYBOARD_LAYOUT",
            "NODE_VERSION",
            "COMPASS_HOME",
            "PATTERN",
            "AUTHOR",
            "HTTP_PROXY",
            "",
        ] {
            assert!(!looks_like_credential(name), "{name}");
        }
    }
}
