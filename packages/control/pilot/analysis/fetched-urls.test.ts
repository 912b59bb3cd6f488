import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { Resource } from '@mizzen/api';
import { FetchPolicy } from '@mizzen/common/fetch-policy';
import { refusedUrl } from './fetched-urls.ts';

const api = (policies: object, kind = 'Api') =>
  ({ apiVersion: 'mizzen.dev/v1alpha1', kind, metadata: { name: 'a' }, spec: { policies } }) as unknown as Resource;
const login = (issuer: string) => api({ login: { issuer } });
const jwt = (jwksUri: string) => api({ authentication: { jwt: [{ jwksUri: 'https://good.example/' }, { jwksUri }] } });

describe('the URLs of an Api that gateways fetch', () => {
  it('do not lead to the machine of the gateway or to a metadata service', () => {
    for (const host of [
      '127.0.0.1',
      '127.1',
      '0x7f000001',
      'localhost',
      'LOCALHOST.',
      'a.localhost',
      '[::1]',
      '[::ffff:7f00:1]',
      '169.254.169.254',
      '[64:ff9b::a9fe:a9fe]',
    ]) {
      assert.match(refusedUrl(login(`http://${host}/`), new FetchPolicy())!, /^spec\.policies\.login\.issuer: .*may not lead there/, host);
      assert.match(
        refusedUrl(jwt(`http://${host}/keys`), new FetchPolicy())!,
        /^spec\.policies\.authentication\.jwt\[1\]\.jwksUri: .*may not lead there/,
        host,
      );
    }
  });

  it('lead elsewhere, and to what the administrator allows', () => {
    for (const one of [
      login('https://accounts.example'),
      jwt('https://10.1.2.3/keys'),
      api({}),
      api({ login: { issuer: 'nowhere' } }),
      api({ authentication: null }),
    ])
      assert.equal(refusedUrl(one, new FetchPolicy()), undefined);
    assert.equal(refusedUrl(login('http://localhost:8080/'), new FetchPolicy(['localhost'])), undefined);
    assert.equal(refusedUrl(api({ login: { issuer: 'http://127.0.0.1' } }, 'Consumer'), new FetchPolicy()), undefined);
  });
});
