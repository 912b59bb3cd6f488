import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import net, { type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import tls from 'node:tls';
import { create } from '@bufbuild/protobuf';
import { packAny } from '@mizzen/envoy-api';
import { DownstreamTlsContextSchema, UpstreamTlsContextSchema } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/tls_pb.js';
import { SPIFFECertValidatorConfigSchema } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/tls_spiffe_validator_config_pb.js';
import { ClientTls } from './client-tls.ts';
import { peerIdentityOf } from './peer-identity.ts';
import { SecretStore } from './secret-store.ts';
import { ServerTls } from './server-tls.ts';

const a = 'a.example';
const b = 'b.example';
const own = 'own.example';
/** A workload of a trust domain: its chain as the client sends it, and its key; PEM. */
interface Workload {
  readonly cert: string;
  readonly key: string;
}

describe('roots of several trust domains', () => {
  const folder = mkdtempSync(join(tmpdir(), 'mizzen-lookalikes-'));
  const secrets: SecretStore[] = [];
  after(() => {
    for (const store of secrets) store.close();
    rmSync(folder, { recursive: true, force: true });
  });
  let serial = 0;
  const openssl = (...args: readonly string[]) => execFileSync('openssl', args, { cwd: folder, stdio: ['ignore', 'pipe', 'pipe'] });
  const read = (name: string) => readFileSync(join(folder, name), 'utf8');

  /** An authority; `key`: the name of one whose key it takes; `by`: which signs it. */
  const authority = (
    name: string,
    subject: string,
    { key = name, extensions = [], by, days = '2' }: { key?: string; extensions?: readonly string[]; by?: string; days?: string } = {},
  ) => {
    if (key === name) openssl('ecparam', '-name', 'prime256v1', '-genkey', '-noout', '-out', `${name}.key`);
    const lines = ['basicConstraints=critical,CA:TRUE', 'keyUsage=critical,keyCertSign,cRLSign', ...extensions].filter(
      (line, at, all) => all.findLastIndex((one) => one.split('=')[0] === line.split('=')[0]) === at,
    );
    if (!lines.some((line) => line.startsWith('subjectKeyIdentifier'))) lines.push('subjectKeyIdentifier=hash');
    writeFileSync(join(folder, `${name}.ext`), `${lines.filter((line) => !line.endsWith('=none')).join('\n')}\n`);
    openssl('req', '-new', '-key', `${key}.key`, '-subj', `/CN=${subject}`, '-out', `${name}.csr`);
    const signer = by === undefined ? ['-signkey', `${key}.key`] : ['-CA', `${by}.pem`, '-CAkey', `${by}.key`];
    openssl('x509', '-req', '-in', `${name}.csr`, ...signer, '-set_serial', String(++serial), '-days', days, '-extfile', `${name}.ext`, '-out', `${name}.pem`);
    return read(`${name}.pem`);
  };
  /** `chain`: authorities between it and the root, in the order in which they are sent. */
  const workload = (name: string, by: string, uris: readonly string[], chain: readonly string[] = [], extensions: readonly string[] = []): Workload => {
    const lines = [`subjectAltName=critical,${uris.map((uri) => `URI:${uri}`).join(',')}`, 'authorityKeyIdentifier=keyid', ...extensions];
    writeFileSync(join(folder, `${name}.ext`), `${lines.join('\n')}\n`);
    openssl('ecparam', '-name', 'prime256v1', '-genkey', '-noout', '-out', `${name}.key`);
    openssl('req', '-new', '-key', `${name}.key`, '-subj', '/', '-out', `${name}.csr`);
    const signer = ['-CA', `${by}.pem`, '-CAkey', `${by}.key`];
    openssl('x509', '-req', '-in', `${name}.csr`, ...signer, '-set_serial', String(++serial), '-days', '1', '-extfile', `${name}.ext`, '-out', `${name}.pem`);
    return { cert: [name, ...chain].map((one) => read(`${one}.pem`)).join(''), key: read(`${name}.key`) };
  };
  const keyId = (pem: string) => {
    const [hex] = /(?:[0-9A-F]{2}:){19}[0-9A-F]{2}/.exec(
      execFileSync('openssl', ['x509', '-noout', '-ext', 'subjectKeyIdentifier'], { input: pem, encoding: 'utf8' }),
    )!;
    return hex;
  };

  const validation = (domains: ReadonlyMap<string, string>) => ({
    customValidatorConfig: {
      name: 'envoy.tls.cert_validator.spiffe',
      typedConfig: packAny(SPIFFECertValidatorConfigSchema, {
        trustDomains: [...domains].map(([name, pem]) => ({ name, trustBundle: { specifier: { case: 'inlineString' as const, value: pem } } })),
      }),
    },
  });
  const inline = (value: string) => ({ specifier: { case: 'inlineString' as const, value } });
  const pairOf = ({ cert, key }: Workload) => [{ certificateChain: inline(cert), privateKey: inline(key) }];
  const store = () => {
    const one = new SecretStore();
    secrets.push(one);
    return one;
  };

  /** Which of the workloads a sidecar with these roots accepts, each in a handshake of its own. */
  const accepted = async (domains: ReadonlyMap<string, string>, server: Workload, workloads: readonly Workload[]): Promise<boolean[]> => {
    const config = create(DownstreamTlsContextSchema, {
      requireClientCertificate: true,
      commonTlsContext: {
        alpnProtocols: ['istio'],
        tlsCertificates: pairOf(server),
        validationContextType: { case: 'validationContext', value: validation(domains) },
      },
    } as never);
    const terminator = new ServerTls(
      config,
      store(),
      {
        handshakeTimeoutMs: 5_000,
        sessionTicketKeys: Buffer.alloc(48, 7),
        onReady: () => {},
        onError: (_error, socket) => socket.destroy(),
        onSecure: (socket) => {
          socket.on('error', () => {});
          if (terminator.verifyPeer(socket) === undefined && !('problem' in peerIdentityOf(socket))) socket.end('yes');
          else socket.destroy();
        },
      },
      'here',
    );
    const listener = net.createServer((socket) => {
      socket.on('error', () => {});
      terminator.accept(socket, {} as never, undefined);
    });
    await once(listener.listen(0, '127.0.0.1'), 'listening');
    const { port } = listener.address() as AddressInfo;
    const answers = await Promise.all(
      workloads.map(async ({ cert, key }) => {
        const socket = tls.connect({ port, host: '127.0.0.1', cert, key, rejectUnauthorized: false, ALPNProtocols: ['istio'] });
        let text = '';
        socket.on('error', () => {}).on('data', (chunk) => (text += String(chunk)));
        await once(socket, 'close');
        return text === 'yes';
      }),
    );
    listener.close();
    terminator.close();
    return answers;
  };

  let roots: Record<'own' | 'a' | 'b', string>;
  let server: Workload;
  let good: Workload[];
  let bad: Workload[];
  /** What the authority of `b` publishes beside its root, by what it copies. */
  let lookalikes: [string, string][];
  before(() => {
    roots = { own: authority('own', 'own'), a: authority('a', 'a'), b: authority('b', 'b') };
    const middle = authority('middle', 'middle', { by: 'a', extensions: ['basicConstraints=critical,CA:TRUE,pathlen:0'] });
    server = workload('server', 'own', [`spiffe://${own}/ns/x/sa/y`]);
    good = [
      workload('of-own', 'own', [`spiffe://${own}/ns/x/sa/y`]),
      workload('of-a', 'a', [`spiffe://${a}/ns/x/sa/y`]),
      workload('of-a-by-middle', 'middle', [`spiffe://${a}/ns/x/sa/z`], ['middle']),
      workload('of-b', 'b', [`spiffe://${b}/ns/x/sa/y`]),
    ];
    const copy = (name: string, of: string, pem: string, extensions: readonly string[] = [`subjectKeyIdentifier=${keyId(pem)}`]): [string, string] => {
      return [`the name and key id of ${of}: ${name}`, authority(name, of, { extensions })];
    };
    lookalikes = [
      copy('like-own', 'own', roots.own),
      copy('like-a', 'a', roots.a),
      copy('like-middle', 'middle', middle),
      copy('like-a-bare', 'a', roots.a, ['subjectKeyIdentifier=none']),
      ['the key of a, for no intermediates', authority('key-of-a', 'a', { key: 'a', extensions: ['basicConstraints=critical,CA:TRUE,pathlen:0'] })],
      ['the key of own, for other names', authority('key-of-own', 'own', { key: 'own', extensions: [`nameConstraints=critical,permitted;URI:${b}`] })],
    ];
    authority('below', 'below', { by: 'middle' });
    authority('constrained', 'constrained', { by: 'a', extensions: [`nameConstraints=critical,permitted;URI:${b}`] });
    bad = [
      workload('a-says-b', 'a', [`spiffe://${b}/ns/x/sa/y`]),
      workload('b-says-a', 'b', [`spiffe://${a}/ns/x/sa/y`]),
      workload('like-a-says-a', 'like-a', [`spiffe://${a}/ns/x/sa/y`]),
      workload('like-own-says-own', 'like-own', [`spiffe://${own}/ns/x/sa/y`]),
      workload('like-middle-says-a', 'like-middle', [`spiffe://${a}/ns/x/sa/y`], ['middle']),
      workload('a-says-both', 'a', [`spiffe://${a}/ns/x/sa/y`, `spiffe://${b}/ns/x/sa/y`]),
      workload('a-climbs', 'a', [`spiffe://${a}/ns/x/../y`]),
      workload('unknown', 'a', ['spiffe://else.example/ns/x/sa/y']),
      workload('too-deep', 'below', [`spiffe://${a}/ns/x/sa/y`], ['below', 'middle']),
      workload('by-constrained', 'constrained', [`spiffe://${a}/ns/x/sa/y`], ['constrained']),
      workload('for-servers', 'a', [`spiffe://${a}/ns/x/sa/y`], [], ['extendedKeyUsage=serverAuth']),
      workload('odd', 'a', [`spiffe://${a}/ns/x/sa/y`], [], ['1.2.3.4=critical,ASN1:NULL']),
      workload('a-workload-signs', 'of-a', [`spiffe://${a}/ns/x/sa/y`], ['of-a']),
    ];
  });

  it('are verified per trust domain, in every order and beside every lookalike', async () => {
    const names = [
      'every name',
      lookalikes
        .slice(0, 4)
        .map(([, one]) => one)
        .join(''),
    ] as const;
    const keys = [
      'every key',
      lookalikes
        .slice(4)
        .map(([, one]) => one)
        .join(''),
    ] as const;
    for (const [what, pem] of [...lookalikes, names, keys])
      for (const order of what.startsWith('every')
        ? permutations([own, a, b])
        : [
            [b, a, own],
            [own, a, b],
          ])
        for (const isFirst of [true, false]) {
          const theirs = isFirst ? pem + roots.b : roots.b + pem;
          const domains = new Map(order.map((name) => [name, name === own ? roots.own : name === a ? roots.a : theirs]));
          const place = `${what}, ${order.join(', ')}, ${isFirst ? 'first' : 'last'}`;
          // A domain that publishes another's key lets the other speak for it.
          const attacks = what === names[0] ? bad : what === keys[0] ? bad.slice(1) : [];
          assert.deepEqual(await accepted(domains, server, [...good, ...attacks]), [...good.map(() => true), ...attacks.map(() => false)], place);
        }
  });

  it('are verified per trust domain when the mesh itself or a third domain holds the lookalikes', async () => {
    const pem = lookalikes.map(([, one]) => one).join('');
    for (const order of permutations([own, a, 'c.example']))
      for (const holder of [own, 'c.example']) {
        const domains = new Map(
          order.map((name) => [name, `${name === holder ? pem : ''}${name === own ? roots.own : name === a ? roots.a : name === holder ? '' : roots.b}`]),
        );
        assert.deepEqual(await accepted(domains, server, good.slice(0, 3)), [true, true, true], `${holder} in ${order.join(', ')}`);
      }
  });

  it('do not keep a client from a server whose names are of one trust domain', async () => {
    const pem = lookalikes.map(([, one]) => one).join('');
    const serverOfA = good[1]!;
    for (const order of permutations([own, a, b])) {
      const domains = new Map(order.map((name) => [name, name === own ? roots.own : name === a ? roots.a : pem + roots.b]));
      const client = new ClientTls(
        create(UpstreamTlsContextSchema, {
          commonTlsContext: {
            tlsCertificates: pairOf(good[0]!),
            validationContextType: {
              case: 'validationContext',
              value: {
                ...validation(domains),
                matchTypedSubjectAltNames: [{ sanType: 3, matcher: { matchPattern: { case: 'exact', value: `spiffe://${a}/ns/x/sa/y` } } }],
              },
            },
          },
        } as never),
        store(),
        'here',
      );
      const listener = tls.createServer({ cert: serverOfA.cert, key: serverOfA.key }, (socket) => socket.end());
      await once(listener.listen(0, '127.0.0.1'), 'listening');
      const socket = tls.connect(client.connectOptions('127.0.0.1', (listener.address() as AddressInfo).port, 'bytes'));
      await once(socket, 'secureConnect');
      assert.equal(socket.authorized, true, order.join(', '));
      socket.destroy();
      listener.close();
    }
  });

  it('are those that a root with impossible constraints leaves', () => {
    const impossible = authority('impossible', 'impossible', { extensions: ['nameConstraints=critical,permitted;URI:else.example'] });
    const one = store();
    one.useRoots(
      'ROOTCA',
      validation(
        new Map([
          [a, roots.a],
          [b, impossible],
        ]),
      ) as never,
      'secret ROOTCA',
    );
    const { subject } = new X509Certificate(one.roots('ROOTCA')!.pem);
    assert.deepEqual([subject, one.roots('ROOTCA')!.pem.split('BEGIN CERTIFICATE').length], ['CN=a', 2]);
  });
});

function permutations(names: readonly string[]): string[][] {
  return names.length < 2 ? [[...names]] : names.flatMap((name) => permutations(names.filter((one) => one !== name)).map((rest) => [name, ...rest]));
}
