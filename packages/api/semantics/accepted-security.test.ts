import assert from 'node:assert/strict';
import { generateKeyPairSync } from 'node:crypto';
import { describe, it } from 'node:test';
import { decodeObject } from '../decode-object.ts';

/** Paths of the problems of an object with this spec; none: it is accepted. */
function problemsOf(apiVersion: string, kind: string, spec: unknown): string[] {
  const decoded = decodeObject({ apiVersion, kind, metadata: { name: 'x' }, spec });
  return 'problems' in decoded ? decoded.problems.map(({ path }) => path) : [];
}
const gateway = (tls: Record<string, unknown>) =>
  problemsOf('networking.istio.io/v1', 'Gateway', {
    selector: { app: 'edge' },
    servers: [{ port: { number: 443, name: 'https', protocol: 'HTTPS' }, hosts: ['*'], tls }],
  }).map((path) => path.replace('spec.servers[0].', ''));
const rule = (tls: Record<string, unknown>) =>
  problemsOf('networking.istio.io/v1', 'DestinationRule', { host: 'a.example', trafficPolicy: { tls } }).map((path) => path.replace('spec.trafficPolicy.', ''));
const security = (kind: string, spec: unknown) => problemsOf('security.istio.io/v1', kind, spec);
const jwtRule = (more: Record<string, unknown>) => security('RequestAuthentication', { jwtRules: [{ issuer: 'https://a.test', ...more }] });
const api = (policies: unknown) =>
  problemsOf('mizzen.dev/v1alpha1', 'Api', { hosts: ['a.example'], placement: 'client', upstream: { service: 's' }, policies });

const own = { credentialName: 'c' };

describe('Security fields of an object', () => {
  it('of a server of a Gateway are refused where its TLS mode does not enforce them', () => {
    const demands = { subjectAltNames: ['a'], verifyCertificateSpki: ['a'], verifyCertificateHash: ['a'], caCrl: '/crl' };
    assert.deepEqual(gateway({ mode: 'MUTUAL', ...own, ...demands }), []);
    assert.deepEqual(gateway({ mode: 'OPTIONAL_MUTUAL', ...own, ...demands }), []);
    for (const [field, value] of Object.entries(demands))
      for (const mode of ['SIMPLE', 'PASSTHROUGH', undefined])
        assert.deepEqual(gateway({ ...(mode === undefined ? {} : { mode }), ...own, [field]: value }), [`tls.${field}`], `${mode} ${field}`);
    const { caCrl: _, ...enforced } = demands;
    assert.deepEqual(gateway({ mode: 'ISTIO_MUTUAL', ...enforced }), []);
    const certificates = { serverCertificate: 'a', privateKey: 'a', caCertificates: 'a', caCrl: 'a', credentialName: 'a', caCertCredentialName: 'a' };
    for (const [field, value] of Object.entries({ ...certificates, credentialNames: ['a'], insecureSkipVerify: true }))
      assert.deepEqual(gateway({ mode: 'ISTIO_MUTUAL', [field]: value }), [`tls.${field}`], field);
    assert.deepEqual(gateway({ mode: 'SIMPLE', ...own, serverCertificate: 'a', privateKey: 'b' }), ['tls']);
  });

  it('of a server of a Gateway are refused where OpenSSL would ignore them', () => {
    assert.deepEqual(gateway({ mode: 'SIMPLE', ...own, cipherSuites: ['ECDHE-ECDSA-AES128-GCM-SHA256', '[AES256-SHA|AES128-SHA]'] }), []);
    assert.deepEqual(gateway({ mode: 'SIMPLE', ...own, cipherSuites: ['ECDHE-ECDSA-AES128-GCM-SHA25'] }), ['tls.cipherSuites[0]']);
    assert.deepEqual(gateway({ mode: 'SIMPLE', ...own, maxProtocolVersion: 'TLSV1_1' }), ['tls.maxProtocolVersion']);
    assert.deepEqual(gateway({ mode: 'SIMPLE', ...own, minProtocolVersion: 'TLSV1_3', maxProtocolVersion: 'TLSV1_2' }), ['tls.maxProtocolVersion']);
    assert.deepEqual(gateway({ mode: 'SIMPLE', ...own, minProtocolVersion: 'TLSV1_0', maxProtocolVersion: 'TLS_AUTO' }), []);
  });

  it('of a Gateway are refused where two servers share a port name, by which their route tables are known', () => {
    const server = (host: string) => ({ port: { number: 443, name: 'https', protocol: 'HTTPS' }, hosts: [host], tls: { mode: 'SIMPLE', ...own } });
    const problems = problemsOf('networking.istio.io/v1', 'Gateway', { selector: {}, servers: [server('a.example'), server('b.example')] });
    assert.deepEqual(problems, ['spec.servers[1].port.name']);
  });

  it('of a DestinationRule are refused where its TLS mode does not enforce them', () => {
    assert.deepEqual(rule({ mode: 'SIMPLE', credentialName: 'c', caCrl: '/crl', subjectAltNames: ['a'] }), []);
    assert.deepEqual(rule({ mode: 'ISTIO_MUTUAL', subjectAltNames: ['spiffe://a/ns/b/sa/c'], sni: 'a' }), []);
    assert.deepEqual(rule({ mode: 'DISABLE', caCertificates: '/ca' }), []);
    assert.deepEqual(rule({ caCertificates: '/ca' }), ['tls.caCertificates']);
    assert.deepEqual(rule({ mode: 'ISTIO_MUTUAL', caCrl: '/crl' }), ['tls.caCrl']);
    for (const field of ['caCertificates', 'caCrl', 'caCertCredentialName'])
      assert.deepEqual(rule({ mode: 'SIMPLE', insecureSkipVerify: true, [field]: 'a' }), [`tls.${field}`]);
    assert.deepEqual(rule({ mode: 'SIMPLE', insecureSkipVerify: true, subjectAltNames: ['a'] }), ['tls.subjectAltNames']);
  });

  it('of a PeerAuthentication are refused where the port or the label cannot be one', () => {
    const ports = (port: string) => security('PeerAuthentication', { selector: { matchLabels: { app: 'a' } }, portLevelMtls: { [port]: { mode: 'STRICT' } } });
    assert.deepEqual(ports('8080'), []);
    for (const port of ['0x50', '080', '8e1', ' 80', '80.0', '+80', '', '65536', '-1', 'http'])
      assert.deepEqual(ports(port), [`spec.portLevelMtls.${port}`], JSON.stringify(port));
    assert.deepEqual(security('PeerAuthentication', { selector: { matchLabels: { app: 'a*' } }, mtls: { mode: 'STRICT' } }), ['spec.selector.matchLabels']);
  });

  it('of an AuthorizationPolicy are refused where no request can meet them', () => {
    const when = (key: string) => security('AuthorizationPolicy', { action: 'DENY', rules: [{ when: [{ key, values: ['a'] }] }] });
    assert.deepEqual(when('request.headers[x-a]'), []);
    for (const key of ['request.headers[x a]', 'request.headers[ x-a]', 'request.headers[x-a\n]', 'request.headers[]'])
      assert.deepEqual(when(key), ['spec.rules[0].when[0].key'], key);
    assert.deepEqual(security('AuthorizationPolicy', { action: 'DENY', rules: [] }), ['spec.rules']);
    const ip = (range: string) => security('AuthorizationPolicy', { action: 'DENY', rules: [{ from: [{ source: { ipBlocks: [range] } }] }] });
    for (const range of ['10.0.0.1', '10.1.2.3/8', '::1', '2001:db8::/32', 'fe80::1/64']) assert.deepEqual(ip(range), [], range);
    for (const range of [
      '::::',
      '1:2',
      ':/64',
      '10.0.0',
      '010.0.0.1',
      '10.0.0.1/33',
      '::1/129',
      'fe80::1%eth0',
      '::ffff:10.0.0.1',
      '0:0:0:0:0:ffff:a00:1/128',
      '',
    ])
      assert.notDeepEqual(ip(range), [], range);
  });

  it('of a RequestAuthentication are refused where a claim would become a field of HTTP itself, or no key can be read', () => {
    assert.deepEqual(jwtRule({ outputPayloadToHeader: 'x-payload', outputClaimToHeaders: [{ header: 'x-user', claim: 'sub' }] }), []);
    for (const header of [
      'host',
      'Content-Length',
      'content_length',
      'transfer-encoding',
      'Transfer_Encoding',
      'connection',
      'te',
      'upgrade',
      'x y',
      'x\r\ny',
      ':path',
    ]) {
      assert.deepEqual(jwtRule({ outputPayloadToHeader: header }), ['spec.jwtRules[0].outputPayloadToHeader'], header);
      assert.deepEqual(jwtRule({ outputClaimToHeaders: [{ header, claim: 'sub' }] }), ['spec.jwtRules[0].outputClaimToHeaders[0].header'], header);
      const provider = { issuer: 'a', jwks: '{"keys":[]}', claimToHeader: { sub: header } };
      assert.deepEqual(api({ authentication: { jwt: [provider] } }), ['spec.policies.authentication.jwt[0].claimToHeader.sub'], header);
    }
    const key = generateKeyPairSync('ec', { namedCurve: 'P-256' }).publicKey.export({ format: 'jwk' });
    const keys = (...list: unknown[]) => jwtRule({ jwks: JSON.stringify({ keys: list }) });
    assert.deepEqual(keys({}, key), []);
    assert.deepEqual(keys({ kty: 'oct', k: 'c2VjcmV0' }), []);
    for (const list of [[{}], [null], [{ ...key, x: 'AA' }], [{ kty: 'oct' }], ['x']])
      assert.deepEqual(keys(...list), ['spec.jwtRules[0].jwks'], JSON.stringify(list));
  });

  it('of a Credential are refused where every password would have the hash, or a login would cost too much', () => {
    const bytes = (length: number) => Buffer.alloc(length, 1).toString('base64');
    const credential = (passwordHash: string) => problemsOf('mizzen.dev/v1alpha1', 'Credential', { consumer: 'a', basic: { username: 'a', passwordHash } });
    assert.deepEqual(credential(`scrypt$16384$8$1$${bytes(16)}$${bytes(32)}`), []);
    for (const [N, r, p, salt, hash] of [
      ['16384', '8', '1', bytes(16), 'A'],
      ['16384', '8', '1', bytes(16), bytes(2)],
      ['16384', '8', '1', 'A', bytes(32)],
      ['1048576', '8', '1', bytes(16), bytes(32)],
      ['16384', '64', '1', bytes(16), bytes(32)],
      ['16384', '8', '64', bytes(16), bytes(32)],
      ['16383', '8', '1', bytes(16), bytes(32)],
      ['2', '8', '1', bytes(16), bytes(32)],
      ['16384', '8', '1', bytes(16), bytes(3_000)],
    ])
      assert.deepEqual(credential(`scrypt$${N}$${r}$${p}$${salt}$${hash}`), ['spec.basic.passwordHash'], `${N} ${r} ${p}`);
  });

  it('of an Api are refused where an empty list would let every caller in, or an address is none', () => {
    const apiKey = { headers: ['x-key'] };
    assert.deepEqual(api({ authentication: { apiKey, allow: { groups: ['a'] } }, ipAccess: { deny: ['10.0.0.0/8'] } }), []);
    for (const allow of [{}, { consumers: [] }, { groups: [], consumers: [] }])
      assert.deepEqual(api({ authentication: { apiKey, allow } }), ['spec.policies.authentication.allow']);
    for (const ipAccess of [{}, { allow: [] }, { deny: [] }, { allow: [], deny: ['10.0.0.1'] }])
      assert.deepEqual(api({ ipAccess }), ['spec.policies.ipAccess']);
    assert.deepEqual(api({ ipAccess: { allow: ['10.0.0.1/99'] } }), ['spec.policies.ipAccess.allow[0]']);
  });
});
