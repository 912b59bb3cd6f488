import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { addressProblem } from './checks.ts';
import { serviceEntryProblems, workloadEntryProblems } from './service.ts';

describe('the address of an endpoint', () => {
  for (const address of ['10.0.0.1', 'fd00::1', 'backend.example.com', 'orders_db_1', 'db', 'fe80::1%eth0', 'backend.example.com.'])
    it(`may be ${address}`, () => {
      assert.equal(addressProblem(address, 'spec.address'), undefined);
    });

  for (const address of ['/', '/run/app.sock', '@name', 'unix:///run/app.sock', 'a b', '10.0.0.1:80', '10.0.0.0/8', 'a'.repeat(254), 'č\n', '-a', '.'])
    it(`is refused: ${JSON.stringify(address).slice(0, 40)}`, () => {
      assert.equal(addressProblem(address, 'spec.address')?.code, 'invalid-value');
      const spec = { hosts: ['outside.example.com'], ports: [{ number: 80, name: 'http', protocol: 'HTTP' }], resolution: 'STATIC', endpoints: [{ address }] };
      assert.deepEqual(
        serviceEntryProblems(spec as never).map(({ path }) => path),
        ['spec.endpoints[0].address'],
      );
      assert.deepEqual(
        workloadEntryProblems({ address } as never).map(({ path }) => path),
        ['spec.address'],
      );
    });
});
