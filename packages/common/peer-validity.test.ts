import assert from 'node:assert/strict';
import { generateKeyPairSync, randomUUID } from 'node:crypto';
import { it } from 'node:test';
import { PeerValidity } from './peer-validity.ts';

it('a peer is valid with a certificate that is not revoked, in its time, and of a trusted domain', () => {
  const now = Date.parse('2026-11-30T12:00:00Z');
  const validity = new PeerValidity({ isRevoked: (serial) => serial === 'ab', isTrustedDomain: (domain) => domain === 'cluster.local', now: () => now });
  const { publicKey } = generateKeyPairSync('ed25519');
  // Of the signature alone: SEQUENCE { nothing, Ed25519 }.
  const raw = Buffer.from('30093000300506032b6570', 'hex');
  const certificate = (fields: object) => ({
    ...{ fingerprint256: randomUUID(), publicKey, raw },
    ...{ serialNumber: '01', validFrom: 'Nov 30 11:00:00 2026 GMT', validTo: 'Nov 30 13:00:00 2026 GMT' },
    ...{ subjectAltName: 'URI:spiffe://cluster.local/ns/a/sa/b', ...fields },
  });
  assert.equal(validity.problemOf(certificate({})), undefined);
  assert.match(String(validity.problemOf(certificate({ serialNumber: 'AB' }))), /revoked/);
  assert.match(String(validity.problemOf(certificate({ validTo: 'Nov 30 11:58:00 2026 GMT' }))), /expired/);
  assert.equal(validity.problemOf(certificate({ validTo: 'Nov 30 11:59:30 2026 GMT' })), undefined, 'clocks may differ by a minute');
  assert.match(String(validity.problemOf(certificate({ validFrom: 'Nov 30 12:02:00 2026 GMT' }))), /not valid before/);
  const weak = generateKeyPairSync('rsa', { modulusLength: 1024 }).publicKey;
  assert.match(String(validity.problemOf(certificate({ publicKey: weak }))), /RSA key of 1024 bits/);
  for (const name of ['URI:spiffe://other/ns/a/sa/b', 'DNS:x, URI:spiffe://cluster.local.evil/ns/a/sa/b', 'URI:spiffe://evil/ns/cluster.local/sa/b'])
    assert.match(String(validity.problemOf(certificate({ subjectAltName: name }))), /not trusted here/, name);
  for (const id of [
    'spiffe://cluster.local/ns/a/../b',
    'spiffe://cluster.local//ns/a',
    'spiffe://cluster.local/',
    'SPIFFE://cluster.local/ns/a',
    'spiffe:cluster.local',
  ])
    assert.match(String(validity.problemOf(certificate({ subjectAltName: `DNS:x, URI:${id}` }))), /not a SPIFFE ID/, id);
});
