use super::any::any_expression;
use super::*;
use proptest::prelude::*;
use proptest::sample::select;

fn read(text: &str) -> Expression {
    let filter = PacketFilter::try_from(text.to_owned()).unwrap_or_else(|error| panic!("{text}: {error}"));
    filter.0.expect("it has words")
}

/// What an expression becomes with no word left out.
fn whole(text: &str) -> String {
    read(text).to_string()
}

#[test]
fn and_and_or_bind_alike_and_to_the_left_as_in_pcap() {
    let [ip, tcp, udp] = ["ip", "tcp", "udp"].map(|word| Box::new(read(word)));
    let or = Expression::Or(ip.clone(), tcp.clone());
    assert_eq!(read("ip or tcp and udp"), Expression::And(Box::new(or.clone()), udp.clone()));
    let and = Expression::And(tcp, udp.clone());
    assert_eq!(read("ip or (tcp and udp)"), Expression::Or(ip.clone(), Box::new(and)));
    assert_eq!(read("not ip or udp"), Expression::Or(Box::new(Expression::Not(ip)), udp));
    assert_eq!(read("not (ip or tcp)"), Expression::Not(Box::new(or)));
    assert_eq!(whole("!(ip||tcp)&&udp"), "not (ip or tcp) and udp");
}

#[test]
fn a_value_without_keywords_has_those_before_it() {
    for (short, long) in [
        ("port 80 or 443", "port 80 or port 443"),
        ("tcp dst port 80 or not 443", "tcp dst port 80 or not tcp dst port 443"),
        ("not host 10.0.0.1 and 10.0.0.2", "not host 10.0.0.1 and host 10.0.0.2"),
        ("src ::1 or fe80::1 or abcd::", "src host ::1 or src host fe80::1 or src host abcd::"),
        ("ip src host 10.0.0.1", "src host 10.0.0.1"),
        ("net 10.0.0.1/32 or 0.0.0.0/0", "host 10.0.0.1 or net 0.0.0.0/0"),
        ("portrange 9-7 and portrange 7-7", "portrange 7-9 and port 7"),
        ("ifname and and ip", "ifname and and ip"),
    ] {
        assert_eq!(whole(short), long);
    }
}

#[test]
fn no_word_means_every_packet() {
    for text in ["", " \n"] {
        assert_eq!(PacketFilter::try_from(text.to_owned()).unwrap(), PacketFilter::default());
    }
    assert_eq!(PacketFilter::default().to_string(), "");
}

#[test]
fn an_error_says_where_and_what_and_what_helps() {
    let many = vec!["port 1"; TESTS_MAX + 1].join(" or ");
    let deep = "(".repeat(100_000);
    for (text, column, why) in [
        ("prot 53", 1, "\"prot\" begins no test; tests begin with ip, ip6, tcp"),
        ("udp port http", 10, "\"http\" stands where udp port needs a number from 0 to 65535"),
        ("udp port", 9, "nothing stands where udp port needs a number"),
        ("port 65536", 6, "needs a number from 0 to 65535"),
        ("port +1", 6, "needs a number"),
        ("portrange 80", 11, "two numbers from 0 to 65535 such as 8000-8080"),
        ("host example.org", 6, "names are not looked up"),
        ("host 10.0.0.0/8", 6, "an address such as 10.0.0.1"),
        ("net 10.0.0.1/8", 5, "nothing set behind its length"),
        ("net 10.0.0.0/33", 5, "needs a network such as"),
        ("ip host ::1", 9, "ip host needs an address"),
        ("ip6 net 10.0.0.0/8", 9, "ip6 net needs a network"),
        ("icmp port 1", 6, "icmp has no port; write and between them"),
        ("tcp src 10.0.0.1", 9, "tcp has no host"),
        ("ip and", 7, "a test is missing"),
        ("ip tcp", 4, "\"tcp\" follows a whole test; join tests by"),
        ("tcp or 80", 8, "\"80\" begins no test"),
        ("(ip", 4, "a ) is missing"),
        ("ip)", 3, "has no ( before it"),
        ("ip & tcp", 4, "\"&\" follows a whole test"),
        ("über", 1, "\"über\" begins no test"),
        ("ifname eth0123456789abc", 8, "at most 15 bytes"),
        (&many, 641, "more than the 64 tests"),
        (&deep, 65, "nested deeper than 64 times"),
    ] {
        let error = PacketFilter::try_from(text.to_owned()).unwrap_err();
        let told = error.to_string();
        assert!(error.column == column && told.contains(why) && !told.contains('\n'), "{text:.40}: {told}");
        assert!(told.starts_with(&format!("at column {column}, ")), "{told}");
    }
}

/// Texts that get further than random ones.
fn any_words() -> impl Strategy<Value = String> {
    const WORDS: &[&str] = &[
        "ip",
        "ip6",
        "tcp",
        "udp",
        "icmp",
        "icmp6",
        "src",
        "dst",
        "host",
        "net",
        "port",
        "portrange",
        "ifname",
        "and",
        "or",
        "not",
        "!",
        "&&",
        "||",
        "(",
        ")",
        "80",
        "1-2",
        "10.0.0.1",
        "::1",
        "10.0.0.0/8",
        "::/0",
        "&",
        "lo",
        "é",
    ];
    prop::collection::vec(select(WORDS), 0..24).prop_map(|words| words.join(" "))
}

proptest! {
    #[test]
    fn what_is_printed_reads_back_the_same(
        expression in any_expression(any::<IpAddr>().boxed(), any::<u16>().boxed(), "[a-z0-9@.:_-]{1,15}".boxed()),
    ) {
        let text = expression.to_string();
        prop_assert_eq!(&read(&text), &expression, "{}", text);
        prop_assert_eq!(read(&text).to_string(), text);
    }

    #[test]
    fn any_text_is_read_or_refused_at_a_column_of_it(text in prop_oneof![any::<String>(), any_words()]) {
        match PacketFilter::try_from(text.clone()) {
            Ok(filter) => prop_assert_eq!(PacketFilter::try_from(filter.to_string()), Ok(filter)),
            Err(error) => prop_assert!((1..=text.chars().count() + 1).contains(&error.column), "{:?}", error),
        }
    }
}
