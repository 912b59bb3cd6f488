import { injectFault } from '@mizzen/common';

/**
 * Preloaded into the processes of a test (`faultyProcess`): makes error boundaries there throw, each once. The product itself has no such switch.
 */
for (const fault of (process.env['TEST_FAULTS'] ?? '').split(',')) {
  const [place, at] = fault.split('=');
  if (place !== undefined && at !== undefined) injectFault(place, Number(at));
}
