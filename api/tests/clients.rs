//! A client that a public generator makes from each OpenAPI file compiles.

use std::fs;
use std::path::Path;
use std::process::Command;

use garret_testing::npm;

const PACKAGES: &[&str] = &["openapi-typescript-codegen@0.29.0", "typescript@5.6.3"];

const TSCONFIG: &str = r#"{"include": ["client"], "compilerOptions": {"strict": true, "noEmit": true, "target": "es2022",
    "module": "es2022", "moduleResolution": "bundler", "lib": ["es2022", "dom"], "types": [], "skipLibCheck": true}}"#;

#[test]
fn generated_clients_compile() {
    let tools = npm::install("openapi-client", PACKAGES).join("node_modules/.bin");
    for (name, function) in [("runner", "listMachines"), ("vmm", "getMemory"), ("agent", "getAgent")] {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("tsconfig.json"), TSCONFIG).unwrap();
        let description = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("openapi/{name}.json"));
        let run = |program: &str, arguments: &[&str]| {
            let output = Command::new(tools.join(program)).args(arguments).current_dir(&folder).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{name}: {program}: {text}");
        };
        run("openapi", &["--input", description.to_str().unwrap(), "--output", "client", "--useOptions"]);
        run("tsc", &["--project", "."]);
        // The generator makes a function of each operationId.
        let services = fs::read_dir(folder.path().join("client/services")).unwrap();
        let functions: String = services.map(|file| fs::read_to_string(file.unwrap().path()).unwrap()).collect();
        assert!(functions.contains(&format!("static {function}(")), "{name} has no {function}");
    }
}
