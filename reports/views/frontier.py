"""Frontier: helpfulness against harmlessness, along RL, and who wins against whom."""

from reports import dashboard, figures

run = dashboard.begin("Frontier")
for draw in (figures.frontier, figures.elo_along, figures.win_rates, figures.pm_score, figures.harmfulness):
    dashboard.show(run, draw)
