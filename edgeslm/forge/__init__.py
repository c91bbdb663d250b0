"""Builds models on the build machine: conversion, training and packing; nothing here runs on a device."""
