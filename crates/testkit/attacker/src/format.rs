//! Where things stand in a registry. The only table is docs/format.md, which this reads; a test of the core compares
//! that page with the code.

use std::sync::OnceLock;

const DOCUMENT: &str = include_str!("../../../../docs/format.md");

/// One field of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// From the beginning of its record.
    pub offset: usize,
    /// As it is called in docs/format.md.
    pub name: String,
    /// How long it is.
    pub bytes: usize,
}

/// One table of the registry.
#[derive(Clone, Debug)]
pub struct Table {
    /// `Header`, `Slot`, `Generation`, `Record`.
    pub name: String,
    /// A number, or the name of the header's field that has it.
    pub records: String,
    /// The size of one record.
    pub size: usize,
    /// Its fields.
    pub fields: Vec<Field>,
}

impl Table {
    /// A field that is there in every format.
    pub fn field(&self, name: &str) -> &Field {
        match self.find(name) {
            Some(field) => field,
            None => panic!("docs/format.md: {} has no field {name}", self.name),
        }
    }

    /// A field that is there in some formats.
    pub fn find(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.name == name)
    }
}

/// The whole layout.
#[derive(Clone, Debug)]
pub struct Format {
    /// The layout's version.
    pub number: u32,
    /// In the order in which they lie in the file.
    pub tables: Vec<Table>,
}

impl Format {
    /// A table that is there in every format.
    pub fn table(&self, name: &str) -> &Table {
        match self.tables.iter().find(|table| table.name == name) {
            Some(table) => table,
            None => panic!("docs/format.md has no table {name}"),
        }
    }

    /// The words that say who has the node lock, what he does with it, and who watches.
    pub fn lock_words(&self) -> Vec<&Field> {
        let names = ["lock", "holder_pid", "holder_operation", "joiners", "released", "sentinel"];
        names.iter().map(|name| self.table("Header").field(name)).collect()
    }
}

/// The layout as docs/format.md has it.
pub fn format() -> &'static Format {
    static FORMAT: OnceLock<Format> = OnceLock::new();
    FORMAT.get_or_init(|| parse(DOCUMENT))
}

fn parse(document: &str) -> Format {
    let number = document
        .lines()
        .find_map(|line| line.strip_prefix("Format ")?.split(['.', ',', ' ']).next()?.parse().ok())
        .expect("docs/format.md says `Format N.`");
    let tables = section(document, "Order")
        .map(|row| {
            let size = number_of(row.get(3)).expect("docs/format.md, Order: the size of one");
            let name = row[1].split(' ').next().unwrap_or_default().to_owned();
            let fields = section(document, &name).filter_map(|row| {
                let (offset, bytes) = (number_of(row.first())?, number_of(row.get(2))?);
                Some(Field { offset, name: row[1].clone(), bytes })
            });
            Table { records: row[2].clone(), size, fields: fields.collect(), name: name.clone() }
        })
        .collect();
    Format { number, tables }
}

/// The cells of a section's table, without its head.
fn section<'a>(document: &'a str, title: &str) -> impl Iterator<Item = Vec<String>> + use<'a> {
    let head = format!("## {title}");
    document
        .lines()
        .skip_while(move |line| *line != head)
        .skip(1)
        .take_while(|line| !line.starts_with("## "))
        .filter(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect())
}

fn number_of(cell: Option<&String>) -> Option<usize> {
    cell?.replace(',', "").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If a format calls them differently, the attacks must learn its names: none may pass because it hits nothing.
    #[test]
    fn the_fields_that_are_attacked_are_there() {
        let format = format();
        let names: Vec<_> = format.tables.iter().map(|table| table.name.as_str()).collect();
        assert!(
            ["Header", "Slot", "Generation", "Singleton", "Record"].iter().all(|name| names.contains(name)),
            "{names:?}"
        );
        for table in &format.tables {
            let end = table.fields.last().map_or(0, |field| field.offset + field.bytes);
            assert_eq!(end, table.size, "{}: its fields fill it", table.name);
            for pair in table.fields.windows(2) {
                assert_eq!(pair[0].offset + pair[0].bytes, pair[1].offset, "{}: {pair:?}", table.name);
            }
        }
        for (table, fields) in crate::scribble::FIELDS {
            fields
                .iter()
                .for_each(|name| assert!(format.table(table).find(name).is_some(), "{table}: {name}"));
        }
        assert_eq!(format.number, 3, "another format may need other attacks");
        assert!(!format.lock_words().is_empty());
    }
}
