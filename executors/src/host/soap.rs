//! As much of SOAP as vim25 needs: texts out, a small tree in.
//!
//! Invariant: what a server answers is bounded in length, depth and number of elements before anybody looks at it.

use quick_xml::{Reader, escape::escape, events::Event};

/// The largest answer read: a cluster's hosts with a dozen properties each stay below 1 MiB.
pub(super) const BODY_BYTES_MAX: usize = 8 << 20;
const DEPTH_MAX: usize = 64;
const ELEMENTS_MAX: usize = 200_000;

/// An element, without its namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) name: String,
    /// Its `type`, or else its `xsi:type`, without a prefix.
    pub(super) kind: String,
    pub(super) children: Vec<Self>,
    pub(super) text: String,
}

/// A managed object: its type and its number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ref {
    pub(super) kind: String,
    pub(super) id: String,
}

impl Element {
    /// Reads a document. The error says what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut reader = Reader::from_str(text);
        let (mut open, mut elements): (Vec<Self>, usize) = (vec![Self::default()], 0);
        loop {
            let event = reader.read_event().map_err(|error| error.to_string())?;
            let start = match &event {
                Event::Start(start) | Event::Empty(start) => Some(start),
                _ => None,
            };
            if let Some(start) = start {
                elements += 1;
                if elements > ELEMENTS_MAX || open.len() > DEPTH_MAX {
                    return Err(format!(
                        "it has more than {ELEMENTS_MAX} elements, or they are {DEPTH_MAX} deep"
                    ));
                }
                let mut element = Self {
                    name: plain(start.local_name().as_ref()),
                    ..Self::default()
                };
                for attribute in start.attributes() {
                    let attribute = attribute.map_err(|error| error.to_string())?;
                    // A reference has both, in either order: its own is the object's, the schema's says that it is one.
                    let is_own = attribute.key.prefix().is_none();
                    if attribute.key.local_name().as_ref() == b"type" && (is_own || element.kind.is_empty()) {
                        let kind = plain(&attribute.value);
                        element.kind = kind.rsplit(':').next().unwrap_or_default().to_owned();
                    }
                }
                open.push(element);
            }
            let Some(top) = open.last_mut() else {
                return Err("it ends more than it began".to_owned());
            };
            match event {
                Event::Text(text) => top.text.push_str(&text.decode().map_err(|error| error.to_string())?),
                Event::CData(text) => top.text.push_str(&text.decode().map_err(|error| error.to_string())?),
                Event::GeneralRef(name) => {
                    let resolved = name.resolve_char_ref().map_err(|error| error.to_string())?;
                    let name = name.decode().map_err(|error| error.to_string())?;
                    top.text.push(match (resolved, &*name) {
                        (Some(character), _) => character,
                        (None, "lt") => '<',
                        (None, "gt") => '>',
                        (None, "amp") => '&',
                        (None, "quot") => '"',
                        (None, "apos") => '\'',
                        (None, other) => return Err(format!("it has the entity {other:?}, which nobody has declared")),
                    });
                }
                Event::DocType(_) => return Err("it has a document type, which SOAP does not allow".to_owned()),
                Event::End(_) | Event::Empty(_) => {
                    let Some(done) = open.pop() else { continue };
                    match open.last_mut() {
                        Some(parent) => parent.children.push(done),
                        None => return Err("it ends more than it began".to_owned()),
                    }
                }
                Event::Eof => break,
                Event::Start(_) | Event::Decl(_) | Event::Comment(_) | Event::PI(_) => {}
            }
        }
        match <[Self; 1]>::try_from(open) {
            Ok([mut document]) if document.children.len() == 1 => Ok(document.children.remove(0)),
            _ => Err("it is not one whole element".to_owned()),
        }
    }

    /// The first child of this name.
    pub(super) fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name == name)
    }

    /// What is found by going down these names.
    pub(super) fn at(&self, names: &[&str]) -> Option<&Self> {
        names.iter().try_fold(self, |element, name| element.child(name))
    }

    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Self> {
        self.children.iter().filter(move |child| child.name == name)
    }

    pub(super) fn is_true(&self) -> bool {
        matches!(self.text.trim(), "true" | "1")
    }

    /// The managed object it names, if it does.
    pub(super) fn reference(&self) -> Option<Ref> {
        let (kind, id) = (self.kind.clone(), self.text.trim().to_owned());
        (!kind.is_empty() && !id.is_empty()).then_some(Ref { kind, id })
    }
}

impl Ref {
    pub(super) fn new(kind: &str, id: &str) -> Self {
        Self {
            kind: kind.to_owned(),
            id: id.to_owned(),
        }
    }

    /// As an argument of a method.
    pub(super) fn argument(&self, name: &str) -> String {
        let (kind, id) = (escape(&self.kind), escape(&self.id));
        format!("<{name} type=\"{kind}\">{id}</{name}>")
    }
}

/// Text as an argument of a method.
pub(super) fn argument(name: &str, text: &str) -> String {
    format!("<{name}>{}</{name}>", escape(text))
}

/// A call of a method of a managed object, with what [`argument`] made.
pub(super) fn envelope(method: &str, this: &Ref, arguments: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\
         <soapenv:Envelope xmlns:soapenv=\"http://schemas.xmlsoap.org/soap/envelope/\" \
         xmlns:xsd=\"http://www.w3.org/2001/XMLSchema\" xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\">\
         <soapenv:Body><{method} xmlns=\"urn:vim25\">{}{arguments}</{method}></soapenv:Body></soapenv:Envelope>",
        this.argument("_this")
    )
}

fn plain(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_answer_is_read_as_a_tree() {
        let text = "<?xml version=\"1.0\"?><s:Envelope xmlns:s=\"x\"><s:Body><R xmlns=\"urn:vim25\"><returnval type=\"HostSystem\">host-1\
                    </returnval><val xsi:type=\"xsd:boolean\">true</val><e/><t>a &lt;b&gt; &#65;<![CDATA[ &c]]></t></R></s:Body></s:Envelope>";
        let read = Element::parse(text).unwrap();
        let answer = read.at(&["Body", "R"]).unwrap();
        let found = answer.child("returnval").unwrap().reference();
        assert_eq!(found, Some(Ref::new("HostSystem", "host-1")));
        let value = answer.child("val").unwrap();
        assert!(value.is_true() && value.kind == "boolean");
        assert_eq!(answer.child("t").unwrap().text, "a <b> A &c");
        assert_eq!(answer.all("e").count(), 1);
        for both in [
            "type=\"Task\" xsi:type=\"ManagedObjectReference\"",
            "xsi:type=\"ManagedObjectReference\" type=\"Task\"",
        ] {
            let read = Element::parse(&format!("<val {both}>task-1</val>")).unwrap();
            assert_eq!(read.reference(), Some(Ref::new("Task", "task-1")));
        }
    }

    #[test]
    fn what_is_no_answer_is_said_so() {
        let deep = format!("{}{}", "<a>".repeat(100), "</a>".repeat(100));
        let doctype = "<!DOCTYPE a [<!ENTITY b \"c\">]><a>&b;</a>";
        for wrong in [
            "",
            "text",
            "<a>",
            "</a>",
            "<a></b>",
            "<a/><b/>",
            &deep,
            doctype,
            "<a>&b;</a>",
        ] {
            assert!(Element::parse(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_text_travels_and_none_panics(text in "[^\r\\x00-\\x08]*", wild: String) {
            drop(Element::parse(&wild));
            let sent = envelope("M", &Ref::new("T", &text), &argument("a", &text));
            let read = Element::parse(&sent).unwrap();
            prop_assert_eq!(&read.at(&["Body", "M", "a"]).unwrap().text, &text);
        }
    }
}
