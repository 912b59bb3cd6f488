import 'reflect-metadata';
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { describe, it } from 'node:test';
import { readSigningRequest } from './signing-request.ts';

const request = (key: readonly string[], digest = 'sha256') =>
  execFileSync('openssl', ['req', '-new', '-nodes', '-subj', '/CN=x', '-keyout', '/dev/null', `-${digest}`, '-newkey', ...key], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'ignore'],
  });
const curve = (name: string) => ['ec', '-pkeyopt', `ec_paramgen_curve:${name}`];

describe('readSigningRequest', () => {
  it('accepts keys and signatures that are strong enough', async () => {
    for (const csr of [request(curve('P-256')), request(curve('P-384')), request(['rsa:2048']), request(['ed25519']), request(['rsa:2048'], 'sha512')])
      await readSigningRequest(csr);
  });

  it('refuses weak keys, weak curves and weak signatures', async () => {
    for (const [csr, reason] of [
      [request(['rsa:1024']), /RSA keys of 1024 bits are not signed/],
      [request(['rsa:2040']), /RSA keys of 2040 bits are not signed/],
      [request(['rsa:2048', '-pkeyopt', 'rsa_keygen_pubexp:3']), /RSA keys with the exponent 3 are not signed/],
      [request(['rsa:2048', '-pkeyopt', 'rsa_keygen_pubexp:17']), /the exponent 17/],
      [request(['rsa:2048'], 'sha1'), /a signature with SHA-1 is not accepted/],
      [request(curve('P-256'), 'sha1'), /is not accepted|cannot be used/],
      [request(curve('P-224')), /keys on the curve secp224r1 are not signed/],
      [request(curve('secp256k1')), /keys on the curve secp256k1 are not signed/],
      [request(curve('prime192v1')), /keys on the curve prime192v1 are not signed/],
    ] as const)
      await assert.rejects(readSigningRequest(csr), reason);
  });
});
