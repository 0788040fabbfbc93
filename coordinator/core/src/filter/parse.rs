//! From text to a [`Filter`]: one pass, recursion bounded.

use std::str::FromStr;

use firmesh_protocol::ids::{LabelName, NameError};

use super::{FILTER_BYTES_MAX, FILTER_DEPTH_MAX, Field, Filter, Test};

/// Why a text is no filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// Longer than any filter.
    #[error("the filter has {0} bytes, at most {FILTER_BYTES_MAX} are read: put the devices into a group")]
    TooLong(usize),
    /// Parentheses in parentheses.
    #[error("column {column}: parentheses and `not` stand more than {FILTER_DEPTH_MAX} deep in each other")]
    TooDeep {
        /// Where.
        column: usize,
    },
    /// Something else than the grammar has there.
    #[error("column {column}: found {found}, expected {expected}")]
    Unexpected {
        /// Where.
        column: usize,
        /// What stands there.
        found: String,
        /// What may stand there.
        expected: &'static str,
    },
    /// A text without its end.
    #[error("column {column}: the text that begins here has no closing quote")]
    Open {
        /// Where it begins.
        column: usize,
    },
    /// A backslash before something else.
    #[error("column {column}: a backslash stands before a quote or a backslash only")]
    Escape {
        /// Where.
        column: usize,
    },
    /// A character that no filter has outside of a text.
    #[error("column {column}: {character:?} has no meaning here: texts stand in double quotes")]
    Character {
        /// Where.
        column: usize,
        /// The character.
        character: char,
    },
    /// What stands after `under` is no place.
    #[error("column {column}: this is not a place")]
    Path {
        /// Where.
        column: usize,
        /// Why not.
        source: NameError,
    },
    /// What stands after `label` names none.
    #[error("column {column}: this cannot be the name of a label")]
    Label {
        /// Where.
        column: usize,
        /// Why not.
        source: NameError,
    },
    /// `under` is for places.
    #[error("column {column}: only `path` can be `under` something")]
    NotAPath {
        /// Where.
        column: usize,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    Text(String),
    /// `(`, `)`, `[`, `]`, `,`, `==`, `!=`.
    Sign(&'static str),
    End,
}

impl Token {
    fn describe(&self) -> String {
        match self {
            Self::Word(word) => format!("`{word}`"),
            Self::Text(text) => format!("the text {text:?}"),
            Self::Sign(sign) => format!("`{sign}`"),
            Self::End => "the end".to_owned(),
        }
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(self, Self::Word(found) if found == word)
    }
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        if text.len() > FILTER_BYTES_MAX {
            return Err(FilterError::TooLong(text.len()));
        }
        let mut parser = Parser {
            tokens: tokens(text)?,
            at: 0,
            depth: 0,
        };
        let filter = parser.any()?;
        match parser.next() {
            (_, Token::End) => Ok(filter),
            found => Err(unexpected(found, "`and`, `or` or the end")),
        }
    }
}

fn tokens(text: &str) -> Result<Vec<(usize, Token)>, FilterError> {
    let mut found = Vec::new();
    let mut rest = (1..).zip(text.chars()).peekable();
    while let Some((column, character)) = rest.next() {
        let token = match character {
            ' ' | '\t' | '\n' | '\r' => continue,
            '(' => Token::Sign("("),
            ')' => Token::Sign(")"),
            '[' => Token::Sign("["),
            ']' => Token::Sign("]"),
            ',' => Token::Sign(","),
            '=' | '!' if rest.next_if(|(_, next)| *next == '=').is_some() => {
                Token::Sign(if character == '=' { "==" } else { "!=" })
            }
            '"' => {
                let mut quoted = String::new();
                loop {
                    match rest.next() {
                        None => return Err(FilterError::Open { column }),
                        Some((_, '"')) => break,
                        Some((column, '\\')) => match rest.next_if(|(_, next)| matches!(next, '"' | '\\')) {
                            Some((_, escaped)) => quoted.push(escaped),
                            None => return Err(FilterError::Escape { column }),
                        },
                        Some((_, plain)) => quoted.push(plain),
                    }
                }
                Token::Text(quoted)
            }
            letter if letter.is_ascii_alphabetic() => {
                let mut word = String::from(letter);
                while let Some((_, letter)) = rest.next_if(|(_, next)| next.is_ascii_alphanumeric() || *next == '_') {
                    word.push(letter);
                }
                Token::Word(word)
            }
            character => return Err(FilterError::Character { column, character }),
        };
        found.push((column, token));
    }
    found.push((text.chars().count() + 1, Token::End));
    Ok(found)
}

struct Parser {
    /// The last is [`Token::End`].
    tokens: Vec<(usize, Token)>,
    at: usize,
    depth: usize,
}

impl Parser {
    fn peek(&self) -> &(usize, Token) {
        &self.tokens[self.at]
    }

    /// The next token; the end again and again.
    fn next(&mut self) -> (usize, Token) {
        let token = self.tokens[self.at].clone();
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        token
    }

    fn take_word(&mut self, word: &str) -> bool {
        let is_here = self.peek().1.is_word(word);
        if is_here {
            self.next();
        }
        is_here
    }

    fn any(&mut self) -> Result<Filter, FilterError> {
        let mut filters = vec![self.all()?];
        while self.take_word("or") {
            filters.push(self.all()?);
        }
        Ok(one_or(filters, Filter::Any))
    }

    fn all(&mut self) -> Result<Filter, FilterError> {
        let mut filters = vec![self.unary()?];
        while self.take_word("and") {
            filters.push(self.unary()?);
        }
        Ok(one_or(filters, Filter::All))
    }

    fn unary(&mut self) -> Result<Filter, FilterError> {
        let (column, _) = *self.peek();
        if self.take_word("not") {
            return self.deeper(column, |parser| Ok(Filter::Not(Box::new(parser.unary()?))));
        }
        if self.peek().1 != Token::Sign("(") {
            return self.test();
        }
        self.next();
        self.deeper(column, |parser| {
            let inner = parser.any()?;
            match parser.next() {
                (_, Token::Sign(")")) => Ok(inner),
                found => Err(unexpected(found, "`and`, `or` or `)`")),
            }
        })
    }

    fn deeper(
        &mut self,
        column: usize,
        parse: impl FnOnce(&mut Self) -> Result<Filter, FilterError>,
    ) -> Result<Filter, FilterError> {
        if self.depth == FILTER_DEPTH_MAX {
            return Err(FilterError::TooDeep { column });
        }
        self.depth += 1;
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    fn test(&mut self) -> Result<Filter, FilterError> {
        const FIELDS: &str = "a field (device, vendor, model, component, version, executor, node, path, state, campaign, \
             label \"name\", hardware_id, hostname, asset_tag, address, owner or contact), `not` or `(`";
        let found = self.next();
        if found.1.is_word("label") {
            let (column, name) = self.text()?;
            let name = name.parse::<LabelName>();
            let name = name.map_err(|source| FilterError::Label { column, source })?;
            return Ok(Filter::Label(name, self.comparison(None)?));
        }
        let field = match &found.1 {
            Token::Word(word) => Field::ALL.into_iter().find(|field| field.as_str() == word),
            _ => None,
        };
        let field = field.ok_or_else(|| unexpected(found, FIELDS))?;
        Ok(Filter::Test(field, self.comparison(Some(field))?))
    }

    /// What must be true of a field, or of a label.
    fn comparison(&mut self, field: Option<Field>) -> Result<Test, FilterError> {
        Ok(match self.next() {
            (_, Token::Sign("==")) => Test::Is(self.text()?.1),
            (_, Token::Sign("!=")) => Test::IsNot(self.text()?.1),
            (_, word) if word.is_word("in") => Test::In(self.list()?),
            (column, word) if word.is_word("under") => {
                if field != Some(Field::Path) {
                    return Err(FilterError::NotAPath { column });
                }
                let (column, place) = self.text()?;
                let place = place.parse();
                Test::Under(place.map_err(|source| FilterError::Path { column, source })?)
            }
            found => return Err(unexpected(found, "`==`, `!=`, `in` or `under`")),
        })
    }

    fn list(&mut self) -> Result<Vec<String>, FilterError> {
        match self.next() {
            (_, Token::Sign("[")) => {}
            found => return Err(unexpected(found, "`[`")),
        }
        let mut texts = vec![self.text()?.1];
        loop {
            match self.next() {
                (_, Token::Sign(",")) => texts.push(self.text()?.1),
                (_, Token::Sign("]")) => return Ok(texts),
                found => return Err(unexpected(found, "`,` or `]`")),
            }
        }
    }

    fn text(&mut self) -> Result<(usize, String), FilterError> {
        match self.next() {
            (column, Token::Text(text)) => Ok((column, text)),
            found => Err(unexpected(found, "a text in double quotes")),
        }
    }
}

fn one_or(mut filters: Vec<Filter>, many: fn(Vec<Filter>) -> Filter) -> Filter {
    match filters.len() {
        1 => filters.remove(0),
        _ => many(filters),
    }
}

fn unexpected((column, found): (usize, Token), expected: &'static str) -> FilterError {
    FilterError::Unexpected {
        column,
        found: found.describe(),
        expected,
    }
}
