/**
 * `unit` in parallel threads; then `crowd`, which needs the machine for itself, one file at a time; then `cluster` (several real agents)
 * and `lab` (network namespaces, real Nix), three files at a time: most of their time they wait, and what they promise in seconds has room.
 */
import { defineConfig } from 'vitest/config'

/** Thirty agents, twenty that start at once, and a build by Nix, whose builder was killed beside tests that build with Nix, too. */
const CROWD = ['test/cluster/thirty.test.ts', 'test/cluster/fleet.test.ts', 'test/lab/nix-package.test.ts']
const patient = {
  pool: 'forks',
  testTimeout: 120_000,
  hookTimeout: 120_000,
  globalSetup: 'test/shared-bundle.ts',
} as const
const oneAtATime = { ...patient, fileParallelism: false } as const
const threeAtATime = { ...patient, maxWorkers: 3 } as const

export default defineConfig({
  test: {
    projects: [
      {
        test: {
          name: 'unit',
          root: '.',
          include: ['test/{agent,nix,protocols}/**/*.test.ts', 'test/architecture.test.ts'],
          testTimeout: 20_000,
          // Many wait: for a disk, a process, a peer.
          maxWorkers: 4,
          sequence: { groupOrder: 0 },
        },
      },
      {
        test: {
          name: 'crowd',
          root: '.',
          include: CROWD,
          sequence: { groupOrder: 1 },
          ...oneAtATime,
        },
      },
      {
        test: {
          name: 'cluster',
          root: '.',
          include: ['test/cluster/**/*.test.ts'],
          exclude: CROWD,
          sequence: { groupOrder: 2 },
          ...threeAtATime,
        },
      },
      {
        test: {
          name: 'lab',
          root: '.',
          include: ['test/lab/**/*.test.ts'],
          exclude: CROWD,
          sequence: { groupOrder: 2 },
          ...threeAtATime,
        },
      },
    ],
  },
})
