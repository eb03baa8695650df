//! A generated C program that takes a while to build. Every run builds the same one.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::Context;

/// The number of its files without the one with `main`.
pub(crate) const FILES: usize = 48;
/// Functions of a file that other files call.
const FUNCTIONS: usize = 3;

/// The beginning of each file.
const HEAD: &str = "\
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct node { struct node *next; unsigned key; char text[24]; };
";

/// Two functions. `@` stands for the number of the file and the function, `#` for a small odd number.
const FUNCTION: &str = r#"
static struct node *insert_@(struct node *list, unsigned key)
{
  struct node *node = calloc(1, sizeof *node);
  if (!node) return list;
  node->key = key * #u;
  snprintf(node->text, sizeof node->text, "%u", key ^ #u);
  node->next = list;
  return node;
}

unsigned part_@(const char *text)
{
  struct node *list = NULL;
  unsigned sum = #;
  for (size_t at = 0; text[at]; at++) {
    switch ((text[at] + at) % 5) {
    case 0: list = insert_@(list, sum); break;
    case 1: sum = sum * #u + (unsigned)text[at]; break;
    case 2: sum ^= sum >> 7; break;
    case 3: sum += (unsigned)strlen(text + at); break;
    default: sum -= (unsigned)at; break;
    }
  }
  while (list) {
    struct node *next = list->next;
    sum += list->key + (unsigned)list->text[0];
    free(list);
    list = next;
  }
  return sum;
}
"#;

const MAKEFILE: &str = "\
CFLAGS = -O1 -g
all: program
program: $(patsubst %.c,%.o,$(wildcard *.c))
\t$(CC) -o $@ $^
";

/// Writes the program.
///
/// # Errors
/// The folder exists already, or cannot be written.
pub(crate) fn write(folder: &Path) -> anyhow::Result<()> {
    let file = |name: &str, text: &str| fs::write(folder.join(name), text).with_context(|| name.to_owned());
    fs::create_dir(folder).with_context(|| folder.display().to_string())?;
    file("Makefile", MAKEFILE)?;
    file("main.c", &main_file())?;
    (0..FILES).try_for_each(|number| file(&format!("part{number}.c"), &part(number)))
}

/// The functions of a file, by their numbers.
fn names(file: usize) -> impl Iterator<Item = String> {
    (0..FUNCTIONS).map(move |function| format!("{file}_{function}"))
}

fn part(file: usize) -> String {
    let functions = names(file).enumerate().map(|(at, name)| {
        let odd = 2 * (file * FUNCTIONS + at) + 3;
        FUNCTION.replace('@', &name).replace('#', &odd.to_string())
    });
    HEAD.to_owned() + &functions.collect::<String>()
}

fn main_file() -> String {
    let (mut declared, mut called) = (String::new(), String::new());
    for name in (0..FILES).flat_map(names) {
        let _ = writeln!(declared, "unsigned part_{name}(const char *text);");
        let _ = writeln!(called, "  sum += part_{name}(text);");
    }
    let head = "int main(int count, char **words)\n{\n  const char *text = words[count - 1];\n  unsigned sum = 0;\n";
    format!("#include <stdio.h>\n{declared}\n{head}{called}  printf(\"%u\\n\", sum);\n  return 0;\n}}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::run;

    #[test]
    fn every_file_differs_and_all_its_functions_are_called() {
        let main = main_file();
        for file in 0..FILES {
            assert!(names(file).all(|name| main.contains(&format!("part_{name}(text)"))));
            assert!(file == 0 || part(file) != part(file - 1));
        }
        assert!(!part(5).contains('@') && part(5).matches("part_5_").count() == FUNCTIONS);
    }

    #[test]
    fn it_is_written_whole() {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("project");
        write(&tree).unwrap();
        assert_eq!(fs::read_dir(&tree).unwrap().count(), FILES + 2);
        assert!(write(&tree).is_err());
    }

    /// This test needs `cc`, which also links this test.
    #[test]
    fn a_compiler_takes_it() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [("part7.c", part(7)), ("main.c", main_file())] {
            let file = folder.path().join(name);
            fs::write(&file, text).unwrap();
            let path = file.to_str().unwrap();
            run("cc", &["-Wall", "-Wextra", "-Werror", "-O1", "-fsyntax-only", path]).unwrap();
        }
    }
}
