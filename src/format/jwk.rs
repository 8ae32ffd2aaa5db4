//! JSON Web Keys (RFC 7517) as PKIX and PKCS#8.

use data_encoding::BASE64URL_NOPAD;
use serde_json::Value as Json;

use super::{
    FormatError,
    der::{self, NULL, OCTET_STRING, OID},
    keys::{EC, ED25519, P256, P384, P521, RSA},
};
use crate::secret::SecretJson;

/// One key.
pub struct Jwk(SecretJson);

impl Jwk {
    /// From its JSON.
    ///
    /// # Errors
    /// It is not JSON.
    pub fn from_json(text: &str) -> Result<Self, FormatError> {
        match serde_json::from_str(text) {
            Ok(value @ Json::Object(_)) => Ok(Self(SecretJson::new(value))),
            _ => Err(FormatError::PrivateKey("it is not a JSON Web Key")),
        }
    }

    fn field(&self, name: &str) -> Option<&str> {
        self.0.expose().get(name)?.as_str()
    }

    fn number(&self, name: &str) -> Result<Vec<u8>, FormatError> {
        let text =
            self.field(name).ok_or(FormatError::PrivateKey("the JSON Web Key lacks one of its numbers"))?;
        let decoded = BASE64URL_NOPAD.decode(text.trim_end_matches('=').as_bytes());
        decoded.map_err(|_| FormatError::PrivateKey("a number of the JSON Web Key is not base64url"))
    }

    /// Curve and size of a coordinate.
    fn curve(&self) -> Result<(&'static [u8], usize), FormatError> {
        match self.field("crv") {
            Some("P-256") => Ok((P256, 32)),
            Some("P-384") => Ok((P384, 48)),
            Some("P-521") => Ok((P521, 66)),
            _ => Err(FormatError::PrivateKey("the JSON Web Key's curve is not P-256, P-384 or P-521")),
        }
    }

    fn padded(&self, name: &str, size: usize) -> Result<Vec<u8>, FormatError> {
        let number = self.number(name)?;
        let missing = size
            .checked_sub(number.len())
            .ok_or(FormatError::PrivateKey("a number of the JSON Web Key is too long for its curve"))?;
        Ok([vec![0; missing], number].concat())
    }

    fn point(&self, size: usize) -> Result<Vec<u8>, FormatError> {
        Ok([vec![4], self.padded("x", size)?, self.padded("y", size)?].concat())
    }

    /// The public key as SubjectPublicKeyInfo.
    ///
    /// # Errors
    /// A kind that is not known here, or a number is missing.
    pub fn public(&self) -> Result<Vec<u8>, FormatError> {
        let (algorithm, bits) = match self.field("kty") {
            Some("RSA") => {
                let numbers = [der::unsigned(&self.number("n")?), der::unsigned(&self.number("e")?)];
                (self.algorithm(RSA, NULL), der::sequence(&[&numbers[0], &numbers[1]]))
            }
            Some("EC") => {
                let (curve, size) = self.curve()?;
                (self.algorithm(EC, &der::tlv(OID, curve)), self.point(size)?)
            }
            Some("OKP") if self.field("crv") == Some("Ed25519") => {
                (self.algorithm(ED25519, &[]), self.number("x")?)
            }
            _ => return Err(UNKNOWN),
        };
        Ok(der::sequence(&[&algorithm, &der::bits(&bits)]))
    }

    /// The private key as PKCS#8.
    ///
    /// # Errors
    /// It is a public key, of a kind not known here, or a number is missing.
    pub fn private(&self) -> Result<Vec<u8>, FormatError> {
        let (algorithm, key) = match self.field("kty") {
            Some("RSA") => {
                let mut numbers = der::integer(0);
                for name in ["n", "e", "d", "p", "q", "dp", "dq", "qi"] {
                    numbers.extend_from_slice(&der::unsigned(&self.number(name)?));
                }
                (self.algorithm(RSA, NULL), der::sequence(&[&numbers]))
            }
            Some("EC") => {
                let (curve, size) = self.curve()?;
                let key = der::tlv(OCTET_STRING, &self.padded("d", size)?);
                let public = der::tlv(0xa1, &der::bits(&self.point(size)?));
                let inner = der::sequence(&[&der::integer(1), &key, &public]);
                (self.algorithm(EC, &der::tlv(OID, curve)), inner)
            }
            Some("OKP") if self.field("crv") == Some("Ed25519") => {
                (self.algorithm(ED25519, &[]), der::tlv(OCTET_STRING, &self.number("d")?))
            }
            _ => return Err(UNKNOWN),
        };
        Ok(der::sequence(&[&der::integer(0), &algorithm, &der::tlv(OCTET_STRING, &key)]))
    }

    fn algorithm(&self, name: &[u8], parameter: &[u8]) -> Vec<u8> {
        der::sequence(&[&der::tlv(OID, name), parameter])
    }
}

const UNKNOWN: FormatError = FormatError::PrivateKey("the JSON Web Key is not RSA, EC or Ed25519");
