import assert from 'node:assert/strict';
import http from 'node:http';
import { after, before, describe, it } from 'node:test';
import { homeFiles } from '@mizzen/control';
import { write } from './support/api.ts';
import { TestMesh } from './support/mesh.ts';

interface Event {
  readonly type: string;
  readonly object: {
    readonly code?: number;
    readonly metadata?: { readonly name?: string; readonly annotations?: Record<string, string>; readonly resourceVersion?: string };
  };
}

describe('A watch of the API', () => {
  let mesh: TestMesh;
  before(async () => {
    mesh = await TestMesh.start();
  });
  after(() => mesh.close());

  /** Resolves with the events up to the first that `isLast` accepts, or up to the end of the response. */
  const watch = (query: string, isLast: (event: Event) => boolean) =>
    new Promise<{ status: number; events: Event[]; body: string }>((resolve, reject) => {
      const path = `/api/v1/namespaces?watch=true&${query}`;
      const request = http.get({ socketPath: homeFiles(mesh.home).apiSocket, path, agent: false }, (response) => {
        let body = '';
        const finish = () => {
          const events = body.split('\n').filter((line) => line.startsWith('{"type"'));
          resolve({ status: response.statusCode ?? 0, events: events.map((line) => JSON.parse(line) as Event), body });
          request.destroy();
        };
        response.setEncoding('utf8').on('data', (chunk: string) => {
          body += chunk;
          const lines = body.split('\n').slice(0, -1);
          if (response.statusCode === 200 && lines.some((line) => isLast(JSON.parse(line) as Event))) finish();
        });
        response.on('end', finish);
      });
      request.on('error', reject);
    });

  const isEndOfInitialEvents = ({ type, object }: Event) => type === 'BOOKMARK' && object.metadata?.annotations?.['k8s.io/initial-events-end'] === 'true';

  it('with sendInitialEvents sends what exists and then the bookmark that informers wait for', async () => {
    const query = 'allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan&sendInitialEvents=true&timeoutSeconds=60';
    const { events } = await watch(query, isEndOfInitialEvents);
    assert.ok(events.slice(0, -1).every(({ type }) => type === 'ADDED'));
    assert.ok(events.some(({ object }) => object.metadata?.name === 'default'));
    assert.equal(events.at(-1)?.object.metadata?.resourceVersion, String(mesh.plane.registry.store.revision()));
  });

  it('is refused with 422 where sendInitialEvents and resourceVersionMatch do not agree', async () => {
    for (const query of ['sendInitialEvents=true', 'sendInitialEvents=true&resourceVersionMatch=Exact', 'resourceVersionMatch=NotOlderThan'])
      assert.equal((await watch(query, () => true)).status, 422, query);
  });

  it('from a revision that the store does not have yet ends with 410 Gone', async () => {
    for (const more of ['', '&sendInitialEvents=true&resourceVersionMatch=NotOlderThan']) {
      const { events } = await watch(`resourceVersion=99999999${more}`, ({ type }) => type === 'ERROR');
      assert.equal(events.at(-1)?.object.code, 410);
    }
  });

  it('is not disturbed by an AuthorizationPolicy without a spec, which allows nothing', async () => {
    const written = await write(mesh, 'apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: { name: allow-nothing, namespace: default }\n');
    assert.equal(written.status, 201, written.message);
  });
});
