//! Requests as real signers left them.

/// The access key id of all of them.
pub(super) const ID: &str = "AKIAEXAMPLE";

/// Its secret, AWS's own example.
pub(super) const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

/// When they were signed, 2026-11-24T12:10:28Z, in seconds since 1970.
pub(super) const AT: u64 = 1_795_522_228;

/// When curl signed, seven minutes later.
pub(super) const CURL_AT: u64 = AT + 413;

/// A request with its signature.
pub(super) struct Signed {
    pub(super) what: &'static str,
    pub(super) method: &'static str,
    pub(super) target: &'static str,
    pub(super) headers: &'static [(&'static str, &'static str)],
    pub(super) body: &'static [u8],
}

/// Signed at [`AT`]: by botocore 1.44.8 (`SigV4Auth` on an `AWSRequest`), and one by AWS's own crate for Rust.
pub(super) const SIGNED: &[Signed] = &[
    Signed {
        what: "an invocation",
        method: "POST",
        target: "/endpoints/ep-1/invocations",
        headers: &[
            ("host", "localhost:8080"),
            ("content-type", "application/json"),
            ("x-amzn-sagemaker-target-model", "team/a.tar.gz"),
            ("x-amzn-sagemaker-custom-attributes", "trace=1"),
            ("x-amz-date", "20261124T121028Z"),
            (
                "authorization",
                "AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/20261124/eu-central-1/sagemaker/aws4_request, \
                 SignedHeaders=content-type;host;x-amz-date;x-amzn-sagemaker-custom-attributes;x-amzn-sagemaker-target-model\
                 , Signature=ef7d8aafaf9f6264514ca840bbf96470baa0e8038767bbc626e7a4327770b353",
            ),
        ],
        body: b"{\"inputs\":[]}",
    },
    Signed {
        what: "temporary keys",
        method: "POST",
        target: "/endpoints/ep-1/invocations",
        headers: &[
            ("host", "localhost:8080"),
            ("content-type", "application/json"),
            ("x-amz-date", "20261124T121028Z"),
            ("x-amz-security-token", "FwoGZXIvYXdzE/+=="),
            (
                "authorization",
                "AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/20261124/eu-central-1/sagemaker/aws4_request, \
                 SignedHeaders=content-type;host;x-amz-date;x-amz-security-token\
                 , Signature=4a3abb4dc08a705fd59b66af18bc368691b2645e347a5302a50a72d80cd1a308",
            ),
        ],
        body: b"{}",
    },
    Signed {
        what: "a path with escapes",
        method: "POST",
        target: "/endpoints/a%20b%2Fc~%25%C3%A9'(x):@+=,;!$&*/invocations",
        headers: &[
            ("host", "localhost:8080"),
            ("x-amz-date", "20261124T121028Z"),
            (
                "authorization",
                "AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/20261124/eu-central-1/sagemaker/aws4_request, \
                 SignedHeaders=host;x-amz-date\
                 , Signature=048d96ae82ca87663c046e889dd419fecceadc721fb0d8b597b8ee3e1a15e2bf",
            ),
        ],
        body: b"{}",
    },
    Signed {
        what: "a query",
        method: "GET",
        target: "/models?b=2&a=1&a=%20x&c&d=%E2%82%AC%2F&a-b=1&=&A=",
        headers: &[
            ("host", "localhost:8080"),
            ("x-amz-date", "20261124T121028Z"),
            (
                "authorization",
                "AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/20261124/eu-central-1/sagemaker/aws4_request, \
                 SignedHeaders=host;x-amz-date\
                 , Signature=a085747595c337044b9b193c4ac0c5389c1b6479e6527e391ab24f972e9fd39b",
            ),
        ],
        body: b"",
    },
    Signed {
        what: "a query of parameters",
        method: "GET",
        target: "/models?next+page=x+y%2F%2B%26%3D~&%C3%A4=&limit=100",
        headers: &[
            ("host", "localhost:8080"),
            ("x-amz-date", "20261124T121028Z"),
            (
                "authorization",
                "AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/20261124/eu-central-1/sagemaker/aws4_request, \
                 SignedHeaders=host;x-amz-date\
                 , Signature=d6f38c550cc4ab2a437a19e84f81f811c57ebee77c6092d944674b81d99e7b63",
            ),
        ],
        body: b"",
    },
    Signed {
        what: "blanks in headers and text in UTF-8",
        method: "POST",
        target: "/endpoints/e/invocations",
        headers: &[
            ("host", "localhost:8080"),
            ("x-amzn-sagemaker-target-model", "  größe   b\t c "),
            ("x-amzn-sagemaker-custom-attributes", ""),
            ("x-amz-date", "20261124T121028Z"),
            (
                "authorization",
                "AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/20261124/eu-central-1/sagemaker/aws4_request, \
                 SignedHeaders=host;x-amz-date;x-amzn-sagemaker-custom-attributes;x-amzn-sagemaker-target-model\
                 , Signature=03d49ed94285a9b2c49a1eb58b033d5e2d8b4f0eaa67143877e9fb4c97992c5b",
            ),
        ],
        body: b"{\"text\":\"gr\xc3\xb6\xc3\x9fe\"}",
    },
    Signed {
        what: "Date in place of X-Amz-Date",
        method: "POST",
        target: "/endpoints/e/invocations",
        headers: &[
            ("host", "localhost:8080"),
            ("date", "Tue, 24 Nov 2026 12:10:28 -0000"),
            (
                "authorization",
                "AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/20261124/eu-central-1/sagemaker/aws4_request, \
                 SignedHeaders=date;host\
                 , Signature=196583830d4fd48344ab147db56463a9476f4a80e5bfd315b0afaa345826d40f",
            ),
        ],
        body: b"{}",
    },
    Signed {
        what: "a body with its hash",
        method: "POST",
        target: "/endpoints/e/invocations",
        headers: &[
            ("host", "localhost:8080"),
            ("x-amz-content-sha256", "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"),
            ("x-amz-date", "20261124T121028Z"),
            (
                "authorization",
                "AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/20261124/eu-central-1/sagemaker/aws4_request, \
                 SignedHeaders=host;x-amz-content-sha256;x-amz-date\
                 , Signature=9db8573dbb4c7b06b4066666e47a4278771c78cfc1cb66b3484baac86e9d18a0",
            ),
        ],
        body: b"{}",
    },
    Signed {
        what: "a body that is not signed",
        method: "POST",
        target: "/endpoints/e/invocations",
        headers: &[
            ("host", "roundhouse.example"),
            ("x-amz-date", "20261124T121028Z"),
            ("x-amz-content-sha256", "UNSIGNED-PAYLOAD"),
            (
                "authorization",
                "AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/20261124/eu-central-1/sagemaker/aws4_request, \
                 SignedHeaders=host;x-amz-content-sha256;x-amz-date\
                 , Signature=403e4b172e571cb6caf473010daa4de42ade42e54ebba5e24c780b34661c28d5",
            ),
        ],
        body: b"\x00\xff\"\x5c",
    },
    Signed {
        what: "a header that is there twice",
        method: "POST",
        target: "/endpoints/e/invocations",
        headers: &[
            ("host", "roundhouse.example"),
            ("accept", "text/plain"),
            ("accept", "*/*"),
            ("x-amz-date", "20261124T121028Z"),
            (
                "authorization",
                "AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/20261124/eu-central-1/sagemaker/aws4_request, \
                 SignedHeaders=accept;host;x-amz-date\
                 , Signature=481ce50452b1845a426bef602cd5eb7249d31421eb236de7376ef5efb39ca6ad",
            ),
        ],
        body: b"{}",
    },
    Signed {
        what: "nothing but a root",
        method: "GET",
        target: "/",
        headers: &[
            ("host", "[::1]:8080"),
            ("x-amz-date", "20261124T121028Z"),
            (
                "authorization",
                "AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/20261124/us-gov-west-1/sagemaker/aws4_request, \
                 SignedHeaders=host;x-amz-date\
                 , Signature=06f64d9f9501681c9a5ccad860a7ec86c45087d4d4f4a356d9d75b19f72e6395",
            ),
        ],
        body: b"",
    },
    Signed {
        what: "a slash at the end",
        method: "GET",
        target: "/models/",
        headers: &[
            ("host", "localhost:8080"),
            ("x-amz-date", "20261124T121028Z"),
            (
                "authorization",
                "AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/20261124/eu-central-1/sagemaker/aws4_request, \
                 SignedHeaders=host;x-amz-date\
                 , Signature=669c11ff94042f9ca6a385ab0ba2675e86094e12de38c7e9eb0dd83787121fc6",
            ),
        ],
        body: b"",
    },
    Signed {
        what: "what aws-sigv4 1.6.4 signs",
        method: "POST",
        target: "/endpoints/a%20b%2Fc~%25%C3%A9/invocations?z=%20x&a=b%2B&a-b=1&a=",
        headers: &[
            ("host", "localhost:8080"),
            ("content-type", "application/json"),
            ("x-amzn-sagemaker-target-model", "  größe   b "),
            ("x-amz-date", "20261124T121028Z"),
            ("x-amz-security-token", "FwoGZXIvYXdzE/+=="),
            (
                "authorization",
                "AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/20261124/eu-central-1/sagemaker/aws4_request, \
                 SignedHeaders=content-type;host;x-amz-date;x-amz-security-token;x-amzn-sagemaker-target-model\
                 , Signature=6330708504caa3d50e833065066ae65f4e0e3b93514c532b2685782cde70c6ce",
            ),
        ],
        body: b"{\"text\":\"gr\xc3\xb6\xc3\x9fe\"}",
    },
];

/// Signed by curl 7.88.1 (`--aws-sigv4 aws:amz:eu-central-1:sagemaker`) at [`CURL_AT`].
pub(super) const CURL: Signed = Signed {
    what: "an invocation",
    method: "POST",
    target: "/endpoints/ep-1/invocations",
    headers: &[
        ("host", "localhost:18080"),
        (
            "authorization",
            "AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/20261124/eu-central-1/sagemaker/aws4_request, \
                 SignedHeaders=content-type;host;x-amz-date;x-amzn-sagemaker-target-model\
                 , Signature=8e7d906304de9ce9f29af15ec159de840803a5c59783fa384523d70a4b637827",
        ),
        ("x-amz-date", "20261124T121721Z"),
        ("user-agent", "curl/7.88.1"),
        ("accept", "*/*"),
        ("x-amzn-sagemaker-target-model", "team/a.tar.gz"),
        ("content-type", "application/json"),
        ("content-length", "13"),
    ],
    body: b"{\"inputs\":[]}",
};
