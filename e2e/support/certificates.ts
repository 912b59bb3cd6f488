import { execFileSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

/** A certificate authority of a test's own, made with openssl. */
export class TestAuthority {
  readonly folder: string;
  readonly certificate: string;
  readonly #name: string;

  constructor(folder: string, name = 'root') {
    this.folder = folder;
    this.#name = name;
    this.certificate = join(folder, `${name}.pem`);
    this.#openssl(
      'req',
      '-x509',
      '-newkey',
      'ec',
      '-pkeyopt',
      'ec_paramgen_curve:P-256',
      '-nodes',
      '-days',
      '2',
      '-subj',
      `/CN=${name}`,
      '-keyout',
      this.#key,
      '-out',
      this.certificate,
    );
  }

  get #key(): string {
    return join(this.folder, `${this.#name}.key`);
  }

  /** Paths of a certificate and its key, for these names (`DNS:a`, `URI:spiffe://...`). */
  issue(
    name: string,
    names: readonly string[],
    options: { readonly rsa?: boolean; readonly days?: number } = {},
  ): { readonly cert: string; readonly key: string } {
    const cert = join(this.folder, `${name}.pem`);
    const key = join(this.folder, `${name}.key`);
    const request = join(this.folder, `${name}.csr`);
    const extensions = join(this.folder, `${name}.ext`);
    writeFileSync(extensions, `subjectAltName=${names.join(',')}\n`);
    this.#openssl(
      'req',
      '-new',
      '-newkey',
      ...(options.rsa ? ['rsa:2048'] : ['ec', '-pkeyopt', 'ec_paramgen_curve:P-256']),
      '-nodes',
      '-subj',
      `/CN=${name}`,
      '-keyout',
      key,
      '-out',
      request,
    );
    this.#openssl(
      'x509',
      '-req',
      '-in',
      request,
      '-CA',
      this.certificate,
      '-CAkey',
      this.#key,
      '-CAcreateserial',
      '-days',
      String(options.days ?? 1),
      '-extfile',
      extensions,
      '-out',
      cert,
    );
    return { cert, key };
  }

  /** A response of this authority's that says the certificate is good, DER. */
  ocspResponse(certificate: string): string {
    const index = join(this.folder, 'index.txt');
    const serial = this.#openssl('x509', '-in', certificate, '-noout', '-serial').trim().split('=')[1]!;
    writeFileSync(index, `V\t300101000000Z\t\t${serial}\tunknown\t/CN=x\n`);
    const request = join(this.folder, 'ocsp.req');
    const response = join(this.folder, 'ocsp.der');
    this.#openssl('ocsp', '-issuer', this.certificate, '-cert', certificate, '-reqout', request);
    this.#openssl(
      'ocsp',
      '-index',
      index,
      '-rsigner',
      this.certificate,
      '-rkey',
      this.#key,
      '-CA',
      this.certificate,
      '-reqin',
      request,
      '-respout',
      response,
      '-ndays',
      '1',
    );
    return response;
  }

  pem(path: string): string {
    return readFileSync(path, 'utf8');
  }

  #openssl(...args: string[]): string {
    return execFileSync('openssl', args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
  }
}
