/**
 * Three projects: `unit` runs in parallel threads; `cluster` (several real agents) and `lab` (network namespaces, real Nix) run one
 * file at a time, since each takes the machine for itself.
 */
import { defineConfig } from 'vitest/config'

const oneAtATime = { pool: 'forks', fileParallelism: false, testTimeout: 120_000, hookTimeout: 120_000 } as const

export default defineConfig({
  test: {
    projects: [
      {
        test: {
          name: 'unit',
          root: '.',
          include: ['test/agent/**/*.test.ts', 'test/protocols/**/*.test.ts', 'test/architecture.test.ts'],
          testTimeout: 20_000,
        },
      },
      { test: { name: 'cluster', root: '.', include: ['test/cluster/**/*.test.ts'], ...oneAtATime } },
      { test: { name: 'lab', root: '.', include: ['test/lab/**/*.test.ts'], ...oneAtATime } },
    ],
  },
})
