import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { after, before, describe, it } from 'node:test';
import { WebSocket } from 'ws';
import { readHosts } from '../packages/cli/lab/lab-state.ts';
import { processesIn } from '../packages/cli/lab/network-namespace.ts';
import { Bookinfo } from './support/bookinfo.ts';
import { call, until } from './support/http.ts';
import { notPrivileged } from './support/lab.ts';
import { skipWithout } from './support/requirements.ts';

describe('the bookinfo example on hosts of its own', { skip: notPrivileged || skipWithout('ip', 'nft') }, () => {
  let mesh: Bookinfo;
  before(async () => {
    mesh = await Bookinfo.start({ isIsolated: true });
  });
  after(() => mesh?.close());

  it('shows its page, routed by weight and by user, though no application knows of a proxy', async () => {
    const seen = new Set<string>();
    await until(
      'pages of both versions',
      async () => {
        const page = await call({ port: 8080, path: '/productpage' });
        assert.equal(page.status, 200);
        const version = /Reviews served by: (reviews-v\d)/.exec(page.body)?.[1];
        seen.add(String(version));
        return seen;
      },
      (versions) => versions.has('reviews-v1') && versions.has('reviews-v3'),
    );
    assert.deepEqual([...seen].sort(), ['reviews-v1', 'reviews-v3']);
    const form = { 'content-type': 'application/x-www-form-urlencoded' };
    const login = await call({ port: 8080, path: '/login', method: 'POST', headers: form, body: 'username=jason' });
    const cookie = String(login.headers['set-cookie']).split(';')[0]!;
    assert.match((await call({ port: 8080, path: '/productpage', headers: { cookie } })).body, /reviews-v2/);
    for (const host of readHosts(mesh.home).filter(({ kind }) => kind === 'inside'))
      for (const pid of await processesIn(host.namespace)) assert.doesNotMatch(readFileSync(`/proc/${pid}/environ`, 'latin1'), /https?_proxy=/i);
  });

  it('shows how many copies are left, by gRPC, and keeps the number up to date, by a WebSocket through the gateway', async () => {
    const page = await call({ port: 8080, path: '/productpage' });
    assert.match(page.body, /<b id="left">\d+<\/b> copies left/);
    const feed = new WebSocket('ws://127.0.0.1:8080/api/v1/products/0/feed');
    const seen: number[] = [];
    feed.on('message', (message) => seen.push(JSON.parse(String(message)).left));
    await until(
      'the number changes',
      async () => new Set(seen).size,
      (count) => count >= 2,
    );
    feed.close();
    await once(feed, 'close');
  });

  it('counts each call on both sides, with the identities that were proved', async () => {
    const host = readHosts(mesh.home).find(({ workload }) => workload === 'details-v1')!;
    const metrics = await until(
      'the metrics of details',
      () => fetch(`http://${host.address}:15090/stats/prometheus`).then((response) => response.text()),
      (text) => text.includes('istio_requests_total{reporter="destination"'),
    );
    assert.match(
      metrics,
      /istio_requests_total\{reporter="destination",.*source_principal="spiffe:\/\/cluster\.local\/ns\/default\/sa\/bookinfo-productpage".*connection_security_policy="mutual_tls"/,
    );
  });

  it('answers to the world who is ready, and nothing else', async () => {
    const host = readHosts(mesh.home).find(({ workload }) => workload === 'details-v1')!;
    assert.equal((await fetch(`http://${host.address}:15021/healthz/ready`)).status, 200);
    assert.equal((await fetch(`http://${host.address}:15021/config_dump`)).status, 404);
    assert.equal((await fetch(`http://${host.address}:15090/certs`)).status, 404);
    const admin = await fetch(`http://${host.address}:15000/config_dump`);
    assert.equal(admin.status, 503, 'the admin server is on loopback only');
  });
});
