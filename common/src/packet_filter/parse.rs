//! Reads an expression: first its words, each with its column, then what they say.

use super::{DEVICE_BYTES_MAX, Expression, Protocol, Side, TESTS_MAX, Test, bits, mask};
use std::net::IpAddr;
use std::str::FromStr;

/// Deepest nesting of parentheses and `not`: bounds the reader's stack.
const DEPTH_MAX: usize = 64;
/// What ends a word.
const SIGNS: [char; 5] = ['(', ')', '!', '&', '|'];
/// What may begin a test.
const TESTS: &str = "ip, ip6, tcp, udp, icmp, icmp6, src, dst, host, net, port, portrange and ifname";

/// Why an expression was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at column {column}, {why}")]
pub struct FilterError {
    /// Where, counted in characters from 1.
    pub column: usize,
    /// What is wrong there, and what helps.
    pub why: String,
}

/// `None` for a text without words.
pub(super) fn parse(text: &str) -> Result<Option<Expression>, FilterError> {
    let words = words(text);
    let mut parser =
        Parser { words: &words, at: 0, end: text.chars().count() + 1, depth: 0, tests: 0, last: None };
    if words.is_empty() {
        return Ok(None);
    }
    let expression = parser.expression()?;
    match parser.word() {
        None => Ok(Some(expression)),
        Some(")") => Err(parser.wrong("this ) has no ( before it; leave it out")),
        Some(word) => Err(parser.wrong(format!("{word:?} follows a whole test; join tests by and or by or"))),
    }
}

/// Words with their columns; parentheses, `!`, `&&` and `||` need no blanks around them.
fn words(text: &str) -> Vec<(usize, &str)> {
    let mut words = Vec::new();
    let mut letters = text.char_indices().zip(1..).peekable();
    while let Some(((start, first), column)) = letters.next() {
        if first.is_whitespace() {
            continue;
        }
        let mut end = start + first.len_utf8();
        while let Some(&((at, next), _)) = letters.peek() {
            let goes_on = match first {
                '&' | '|' => next == first && at == start + 1,
                '(' | ')' | '!' => false,
                _ => !next.is_whitespace() && !SIGNS.contains(&next),
            };
            if !goes_on {
                break;
            }
            end = at + next.len_utf8();
            letters.next();
        }
        words.push((column, &text[start..end]));
    }
    words
}

/// The keywords before a value.
#[derive(Clone, Copy)]
struct Keywords<'t> {
    protocol: Option<Protocol>,
    side: Side,
    /// `host`, `net`, `port` or `portrange`.
    kind: &'t str,
}

struct Parser<'t> {
    words: &'t [(usize, &'t str)],
    at: usize,
    /// Column behind the text.
    end: usize,
    depth: usize,
    tests: usize,
    /// Those of the test before, for a value that has none of its own.
    last: Option<Keywords<'t>>,
}

impl<'t> Parser<'t> {
    fn word(&self) -> Option<&'t str> {
        self.words.get(self.at).map(|(_, word)| *word)
    }

    /// Goes on if the word is one of these.
    fn take(&mut self, wanted: &[&str]) -> bool {
        let is_there = self.word().is_some_and(|word| wanted.contains(&word));
        self.at += usize::from(is_there);
        is_there
    }

    /// An error at the word that is next.
    fn wrong(&self, why: impl Into<String>) -> FilterError {
        let column = self.words.get(self.at).map_or(self.end, |(column, _)| *column);
        FilterError { column, why: why.into() }
    }

    fn expression(&mut self) -> Result<Expression, FilterError> {
        let mut left = self.term()?;
        loop {
            if self.take(&["and", "&&"]) {
                left = Expression::And(Box::new(left), Box::new(self.term()?));
            } else if self.take(&["or", "||"]) {
                left = Expression::Or(Box::new(left), Box::new(self.term()?));
            } else {
                return Ok(left);
            }
        }
    }

    fn term(&mut self) -> Result<Expression, FilterError> {
        let Some(word @ ("not" | "!" | "(")) = self.word() else { return self.test().map(Expression::Test) };
        if self.depth == DEPTH_MAX {
            let why = format!("it is nested deeper than {DEPTH_MAX} times; leave out what is not needed");
            return Err(self.wrong(why));
        }
        self.depth += 1;
        self.at += 1;
        let term = if word == "(" {
            let inner = self.expression()?;
            if !self.take(&[")"]) {
                return Err(self.wrong("a ) is missing; close each ( with one"));
            }
            inner
        } else {
            Expression::Not(Box::new(self.term()?))
        };
        self.depth -= 1;
        Ok(term)
    }

    fn test(&mut self) -> Result<Test, FilterError> {
        let Some(word) = self.word() else {
            return Err(self.wrong(format!("a test is missing; tests begin with {TESTS}")));
        };
        if self.tests == TESTS_MAX {
            let why =
                format!("it has more than the {TESTS_MAX} tests that the kernel's program has room for");
            return Err(self.wrong(why + "; join some with net or portrange"));
        }
        self.tests += 1;
        if self.take(&["ifname"]) {
            self.last = None;
            return self.device();
        }
        let protocol = Protocol::of(word);
        self.at += usize::from(protocol.is_some());
        let side = Side::of(self.word().unwrap_or_default()).unwrap_or(Side::Either);
        self.at += usize::from(side != Side::Either);
        let kind = self.word().filter(|word| matches!(*word, "host" | "net" | "port" | "portrange"));
        if kind.is_none() && side == Side::Either {
            if let Some(protocol) = protocol {
                self.last = None;
                return Ok(Test::Protocol(protocol));
            }
            let is_value = word.starts_with(|first: char| first.is_ascii_hexdigit() || first == ':');
            return match self.last.filter(|_| is_value && word != "and") {
                Some(last) => self.value(last),
                None => Err(self.wrong(format!("{word:?} begins no test; tests begin with {TESTS}"))),
            };
        }
        let keywords = Keywords { protocol, side, kind: kind.unwrap_or("host") };
        if let Some(protocol) = protocol.filter(|protocol| !keywords.go_with(*protocol)) {
            let (protocol, kind) = (protocol.word(), keywords.kind);
            return Err(
                self.wrong(format!("{protocol} has no {kind}; write and between them if both are meant"))
            );
        }
        self.at += usize::from(kind.is_some());
        self.value(keywords)
    }

    /// What follows the keywords.
    fn value(&mut self, keywords: Keywords<'t>) -> Result<Test, FilterError> {
        let Keywords { protocol, side, kind } = keywords;
        let word = self.word().unwrap_or_default();
        let test = match kind {
            "host" => {
                let address = word.parse().ok().filter(|address| fits(protocol, *address));
                address.map(|address| Test::Address { side, address, length: bits(address) })
            }
            "net" => network(word)
                .filter(|(address, _)| fits(protocol, *address))
                .map(|(address, length)| Test::Address { side, address, length }),
            "port" => number(word).map(|port| Test::Ports { protocol, side, first: port, last: port }),
            _ => word.split_once('-').and_then(|(one, other)| Some((number(one)?, number(other)?))).map(
                |(one, other): (u16, u16)| Test::Ports {
                    protocol,
                    side,
                    first: one.min(other),
                    last: one.max(other),
                },
            ),
        };
        let Some(test) = test else { return Err(self.no_value(keywords, word)) };
        self.at += 1;
        self.last = Some(keywords);
        Ok(test)
    }

    fn no_value(&self, keywords: Keywords<'_>, word: &str) -> FilterError {
        let what = match keywords.kind {
            "host" => "an address such as 10.0.0.1 or 2001:db8::1; names are not looked up",
            "net" => "a network such as 10.0.0.0/8 or 2001:db8::/32, with nothing set behind its length",
            "port" => "a number from 0 to 65535",
            _ => "two numbers from 0 to 65535 such as 8000-8080",
        };
        let of = keywords.protocol.map_or(String::new(), |protocol| format!("{} ", protocol.word()));
        let found = if word.is_empty() { "nothing".to_owned() } else { format!("{word:?}") };
        self.wrong(format!("{found} stands where {of}{} needs {what}", keywords.kind))
    }

    fn device(&mut self) -> Result<Test, FilterError> {
        let name = self.word().unwrap_or_default();
        if name.is_empty() || name.len() > DEVICE_BYTES_MAX || name.starts_with(SIGNS) {
            let why =
                format!("ifname needs the name of a network device, of at most {DEVICE_BYTES_MAX} bytes");
            return Err(self.wrong(why));
        }
        self.at += 1;
        Ok(Test::Device(name.to_owned()))
    }
}

impl Keywords<'_> {
    /// Whether they say something of this protocol.
    fn go_with(&self, protocol: Protocol) -> bool {
        match protocol {
            Protocol::Ip | Protocol::Ip6 => matches!(self.kind, "host" | "net"),
            Protocol::Tcp | Protocol::Udp => matches!(self.kind, "port" | "portrange"),
            Protocol::Icmp | Protocol::Icmp6 => false,
        }
    }
}

/// Whether an address can be in a packet of the protocol.
fn fits(protocol: Option<Protocol>, address: IpAddr) -> bool {
    match protocol {
        Some(Protocol::Ip) => address.is_ipv4(),
        Some(Protocol::Ip6) => address.is_ipv6(),
        _ => true,
    }
}

fn number<N: FromStr>(word: &str) -> Option<N> {
    word.bytes().all(|digit| digit.is_ascii_digit()).then(|| word.parse().ok()).flatten()
}

/// An address and a length behind which it has no bit set.
fn network(word: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = word.split_once('/')?;
    let (address, length): (IpAddr, u8) = (address.parse().ok()?, number(length)?);
    let is_clean = match (address, mask(address, length)?) {
        (IpAddr::V4(address), IpAddr::V4(mask)) => address & mask == address,
        (IpAddr::V6(address), IpAddr::V6(mask)) => address & mask == address,
        _ => false,
    };
    is_clean.then_some((address, length))
}
