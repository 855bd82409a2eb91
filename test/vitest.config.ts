/**
 * Three projects, one after the other: `unit` in parallel threads; then `cluster` (several real agents) and `lab` (network namespaces,
 * real Nix) one file at a time, since each takes the machine for itself, and some promise times.
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
          sequence: { groupOrder: 0 },
        },
      },
      {
        test: {
          name: 'cluster',
          root: '.',
          include: ['test/cluster/**/*.test.ts'],
          sequence: { groupOrder: 1 },
          ...oneAtATime,
        },
      },
      {
        test: {
          name: 'lab',
          root: '.',
          include: ['test/lab/**/*.test.ts'],
          sequence: { groupOrder: 2 },
          ...oneAtATime,
        },
      },
    ],
  },
})
