import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { chmodSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, beforeEach, describe, it } from 'node:test';
import { create } from '@bufbuild/protobuf';
import { packAny, typeUrls } from '@mizzen/envoy-api';
import { ClusterSchema } from '@mizzen/envoy-api/gen/envoy/config/cluster/v3/cluster_pb.js';
import { NodeSchema } from '@mizzen/envoy-api/gen/envoy/config/core/v3/base_pb.js';
import { DiscoveryResponseSchema } from '@mizzen/envoy-api/gen/envoy/service/discovery/v3/discovery_pb.js';
import { KeptConfigurationFile, type ProxyBinding } from './kept-configuration.ts';

const identity = 'spiffe://cluster.local/ns/default/sa/web';
const binding: ProxyBinding = { node: create(NodeSchema, { id: 'sidecar~127.0.0.1~web.default~default.svc.cluster.local' }), identity, version: '1.2.3' };
const secret = 'not-to-be-found-in-clear';
const hour = 3_600_000;

describe('a configuration kept on disk', () => {
  const root = mkdtempSync(join(tmpdir(), 'mizzen-kept-'));
  const folder = join(root, 'state');
  const path = join(folder, 'configuration');
  let certificate: string;
  const content = () => ({
    updates: [create(DiscoveryResponseSchema, { typeUrl: typeUrls.cluster, resources: [packAny(ClusterSchema, { name: secret })] })],
    ...{ certificate, privateKey: secret, root: 'the root' },
  });
  const fileOf = (more: Partial<ProxyBinding> = {}, maxAgeMs?: number, now?: () => number) =>
    new KeptConfigurationFile(folder, { ...binding, ...more }, maxAgeMs, now);
  const reasonOf = (file: KeptConfigurationFile) => {
    const kept = file.read();
    assert.equal(kept.kind, 'ignored');
    return kept.kind === 'ignored' ? kept.reason : '';
  };

  before(() => {
    const [key, pem] = [join(root, 'key.pem'), join(root, 'cert.pem')];
    const name = ['-subj', '/CN=web', '-addext', `subjectAltName=URI:${identity}`];
    const options = ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '1', ...name, '-keyout', key, '-out', pem];
    execFileSync('openssl', options, { stdio: 'ignore' });
    certificate = readFileSync(pem, 'utf8');
  });
  beforeEach(async () => {
    rmSync(folder, { recursive: true, force: true });
    await fileOf().write(content());
  });
  after(() => rmSync(root, { recursive: true, force: true }));

  it('is read as it was written', () => {
    const kept = fileOf().read();
    assert.ok(kept.kind === 'usable');
    assert.equal(kept.configuration.privateKey, secret);
    assert.equal(kept.configuration.updates[0]?.resources.length, 1);
  });

  it('lies in files of mode 0600 in a folder of mode 0700, without secrets in clear', () => {
    assert.equal(statSync(folder).mode & 0o777, 0o700);
    assert.deepEqual(readdirSync(folder).sort(), ['configuration', 'key']);
    for (const name of readdirSync(folder)) {
      assert.equal(statSync(join(folder, name)).mode & 0o777, 0o600);
      assert.ok(!readFileSync(join(folder, name)).includes(secret));
    }
  });

  it('is ignored when any part of it is changed or cut off', () => {
    const whole = readFileSync(path);
    for (let at = 0; at < whole.length; at += 7) {
      const changed = Buffer.from(whole);
      changed[at]! ^= 0x04;
      for (const bytes of [changed, whole.subarray(0, at)]) {
        writeFileSync(path, bytes);
        assert.equal(fileOf().read().kind, 'ignored', `byte ${at}`);
      }
    }
    writeFileSync(path, whole);
    assert.equal(fileOf().read().kind, 'usable');
  });

  it('is ignored when it belongs to another identity, another node or another version', () => {
    assert.match(reasonOf(fileOf({ identity: 'spiffe://cluster.local/ns/default/sa/other' })), /another identity/);
    assert.match(reasonOf(fileOf({ node: create(NodeSchema, { ...binding.node, metadata: { LABELS: { app: 'other' } } }) })), /another node/);
    assert.match(reasonOf(fileOf({ version: '1.2.4' })), /version 1\.2\.3 .*version 1\.2\.4/);
  });

  it('is ignored when it is too old, or its certificate has expired', () => {
    assert.match(reasonOf(fileOf({}, hour, () => Date.now() + 2 * hour)), /too old: it was written/);
    assert.match(reasonOf(fileOf({}, 72 * hour, () => Date.now() + 48 * hour)), /too old: the certificate in it expired/);
  });

  it('is ignored when others can read it, or it is a link', () => {
    chmodSync(path, 0o644);
    assert.match(reasonOf(fileOf()), /mode 644/);
    chmodSync(path, 0o600);
    renameSync(path, join(root, 'elsewhere'));
    symlinkSync(join(root, 'elsewhere'), path);
    assert.match(reasonOf(fileOf()), /ELOOP/);
  });

  it('is ignored without its key, and absent before the first write', () => {
    rmSync(join(folder, 'key'));
    assert.match(reasonOf(fileOf()), /damaged/);
    rmSync(folder, { recursive: true });
    assert.equal(fileOf().read().kind, 'none');
  });

  it('stays as it was when a newer one cannot be written', async () => {
    rmSync(join(folder, 'key'));
    mkdirSync(join(folder, 'key'));
    const before = readFileSync(path);
    await assert.rejects(fileOf().write(content()));
    assert.deepEqual(readFileSync(path), before);
  });
});
