import assert from 'node:assert/strict';
import { it } from 'node:test';
import { virtualServiceProblems } from './virtual-service.ts';

const withAbort = (grpcStatus: string) => ({ hosts: ['a'], http: [{ fault: { abort: { grpcStatus } }, route: [{ destination: { host: 'a' } }] }] });

it('takes a status of gRPC by name or number, and says which there are', () => {
  for (const status of ['UNAVAILABLE', 'unavailable', '14', '0']) assert.deepEqual(virtualServiceProblems(withAbort(status)), [], status);
  for (const status of ['UNAVAIL', '17', '-1', '']) {
    const [problem] = virtualServiceProblems(withAbort(status));
    assert.equal(problem?.path, 'spec.http[0].fault.abort.grpcStatus');
    assert.match(problem.message, /is no status of gRPC: one of OK, CANCELLED/);
  }
});
