/** An UpkeepApi with a clock that is well. */
import type { UpkeepApi } from '../../../agent/api/upkeep-api.ts'

export const fakeUpkeep: UpkeepApi = {
  doctor: async () => ({
    checks: [{ id: 'clock', name: 'clock', state: 'ok', message: 'as the peers have it' }],
  }),
  metrics: async () => ({ text: '# HELP up Whether it runs.\n# TYPE up gauge\nup 1\n' }),
  backup: async () => ({
    sizeBytes: 5,
    read: async function* () {
      yield Buffer.from('hello')
    },
  }),
}
