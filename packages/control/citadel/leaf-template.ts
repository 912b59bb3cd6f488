import 'reflect-metadata';
import { type KeyObject, sign } from 'node:crypto';
import { derElement } from '@mizzen/common';
import { AsnConvert } from '@peculiar/asn1-schema';
import { Certificate, Extension, Extensions, GeneralName, SubjectAlternativeName, SubjectPublicKeyInfo, type TBSCertificate } from '@peculiar/asn1-x509';

const subjectAlternativeName = '2.5.29.17';

/** What a certificate says beside what all of its kind say. */
export interface LeafFields {
  /** SubjectPublicKeyInfo, DER. */
  readonly publicKey: ArrayBuffer;
  /** Hex. */
  readonly serial: string;
  readonly notBefore: Date;
  readonly notAfter: Date;
  readonly uri: string;
}

/**
 * Certificates of workloads that differ in key, name and time only: what they share is made once (by whoever makes the pattern), and each is signed without
 * being built from the ground. Making a thousand costs a second instead of four.
 */
export class LeafTemplate {
  readonly #tbs: TBSCertificate;
  readonly #extensions: readonly Extension[];
  readonly #algorithm: Buffer;
  readonly #key: KeyObject;
  readonly #hash: string;

  /** `pattern`: a certificate like those that are to be made, DER. */
  constructor(pattern: ArrayBuffer, key: KeyObject, hash: string) {
    const certificate = AsnConvert.parse(pattern, Certificate);
    this.#tbs = certificate.tbsCertificate;
    this.#extensions = [...(this.#tbs.extensions ?? [])].filter(({ extnID }) => extnID !== subjectAlternativeName);
    this.#algorithm = Buffer.from(AsnConvert.serialize(certificate.signatureAlgorithm));
    this.#key = key;
    this.#hash = hash;
  }

  /** PEM. */
  make({ publicKey, serial, notBefore, notAfter, uri }: LeafFields): string {
    const tbs = this.#tbs;
    tbs.serialNumber = new Uint8Array(Buffer.from(serial, 'hex')).buffer;
    tbs.validity.notBefore.utcTime = notBefore;
    tbs.validity.notAfter.utcTime = notAfter;
    tbs.subjectPublicKeyInfo = AsnConvert.parse(publicKey, SubjectPublicKeyInfo);
    const names = new SubjectAlternativeName([new GeneralName({ uniformResourceIdentifier: uri })]);
    const named = new Extension({ extnID: subjectAlternativeName, critical: true });
    named.extnValue.buffer = AsnConvert.serialize(names);
    tbs.extensions = new Extensions([...this.#extensions, named]);
    const body = Buffer.from(AsnConvert.serialize(tbs));
    const signature = sign(this.#hash, body, this.#key);
    const whole = derElement(0x30, body, this.#algorithm, derElement(0x03, Buffer.of(0), signature));
    return `-----BEGIN CERTIFICATE-----\n${whole.toString('base64').replace(/.{64}(?=.)/g, '$&\n')}\n-----END CERTIFICATE-----\n`;
  }
}
